//! The guest inside `ballast` boots, runs its programs, and ends.

use integration_tests::Home;

#[test]
fn when_all_programs_have_exited_the_guest_powers_off_with_status_0() {
    let home = Home::new();
    let mut vm = home.start("run", &["--memory", "64M", "--program", "hog size=16M rounds=2"]);
    assert_eq!(vm.wait_for_end(), 0);
    let messages = vm.messages.text();
    assert!(
        !messages.contains("violation") && !messages.contains("panic"),
        "{messages}"
    );
    home.assert_nothing_left();
}

#[test]
fn with_no_program_the_guest_idles_until_it_is_stopped() {
    let home = Home::new();
    let mut vm = home.start("run", &["--memory", "64M", "--hotplug", "64M"]);
    vm.wait_for_driver();
    assert_eq!(vm.stats().text("state"), "running");
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    home.assert_nothing_left();
}

#[test]
fn several_programs_verify_side_by_side() {
    let home = Home::new();
    let programs = [
        "--program",
        "hog size=8M seed=1",
        "--program",
        "hog size=8M seed=2 pages=small",
    ];
    let mut vm = home.start(
        "run",
        &[&["--memory", "96M", "--hotplug", "64M"], &programs[..]].concat(),
    );
    vm.wait_for_driver();
    assert_eq!(vm.programs().len(), 2);
    vm.wait_for_checks(20);
}

#[test]
fn a_virtual_machine_may_have_two_processors() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "64M",
        "--hotplug",
        "64M",
        "--cpus",
        "2",
        "--program",
        "hog size=16M",
    ];
    let mut vm = home.start("run", &arguments);
    vm.wait_for_driver();
    vm.resize("128M");
    vm.wait_for_checks(10);
}
