//! A guest that reboots stays in its process: its memory goes back to the host, and what is requested comes back.

use integration_tests::Home;

const MIB: u64 = 1 << 20;

#[test]
fn a_rebooted_guest_gives_all_blocks_back_and_gets_what_is_requested() {
    let home = Home::new();
    let memory = ["--memory", "64M", "--hotplug", "256M,requested=64M"];
    let mut vm = home.start("boot", &[&memory[..], &["--program", "hog fill=60%"]].concat());
    vm.wait_until("what is requested at boot", |stats| {
        stats.number("plugged_size") == 64 * MIB
    });
    vm.resize("256M");
    vm.wait_for_checks(3);
    let before = vm.stats();
    assert_eq!(before.number("reboots"), 0);
    let pid = vm.pid();

    // Only once: whoever asks hears the answer before the guest goes.
    assert_eq!(vm.guest("reboot"), "");
    let after = vm.wait_until("the reboot and 192 MiB plugged again", |stats| {
        stats.number("reboots") == 1
            && stats.flag("driver_ready")
            && stats.number("plugged_size") == 192 * MIB
    });
    assert_eq!((vm.pid(), after.number("pid")), (pid, u64::from(pid)));
    // Every block went back to the host, and the newest request counts, not the one from the command line.
    let discarded = after.number("discarded_bytes") - before.number("discarded_bytes");
    assert_eq!(discarded, 192 * MIB);
    assert_eq!(after.number("requested_size"), 192 * MIB);
    assert!(
        after.number("usable_region_size") >= 192 * MIB,
        "no room for what is requested"
    );
    for faults in ["violations", "guest_faults", "errors"] {
        assert_eq!(after.number(faults), 0, "{faults}");
    }
    // The new guest is whole: its programs check their memory, and it shrinks and grows.
    vm.wait_for_checks(3);
    vm.resize("64M");
    vm.resize("320M");
    vm.wait_for_checks(3);
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    home.assert_nothing_left();
}

#[test]
fn a_guest_reboots_as_often_as_it_likes_with_all_its_cpus() {
    let home = Home::new();
    let arguments = ["--memory", "64M", "--cpus", "2", "--program", "hog size=8M"];
    let mut vm = home.start("often", &arguments);
    for reboots in 0..=3 {
        vm.wait_until("this boot", |stats| stats.number("reboots") == reboots);
        let mut answer = None;
        vm.wait_until("an answer of the guest", |_| {
            let outcome = vm_answer(&home, "often");
            answer = (outcome.status == 0).then_some(outcome.stdout);
            answer.is_some()
        });
        let cpus = answer.expect("it was just waited for");
        assert_eq!(cpus.lines().count(), 3, "a header and two CPUs: {cpus}");
        vm.wait_for_checks(1);
        vm.guest("reboot");
    }
}

/// What the guest says of its CPUs.
fn vm_answer(home: &Home, name: &str) -> integration_tests::Outcome {
    home.run(["guest", name, "cpus"])
}

#[test]
fn a_reboot_ends_the_vm_where_that_is_wanted() {
    let home = Home::new();
    let mut vm = home.start("once", &["--memory", "64M", "--on-reboot", "exit"]);
    vm.wait_until("the guest's channel", |_| vm_answer(&home, "once").status == 0);
    assert_eq!(vm.guest("reboot"), "", "the answer, before the VM is gone");
    assert_eq!(vm.wait_for_end(), 0);
    let messages = vm.messages.text();
    assert!(messages.contains("guest asked for a reboot"), "{messages}");
    home.assert_nothing_left();
}
