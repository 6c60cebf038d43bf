//! The command line and a running VM: resizes that are waited for, ends in order, and what `--json` says.

use std::fs;

use integration_tests::{Home, Running, eventually};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A VM of 64 MiB with a region of 256 MiB, whose driver is ready.
fn start(home: &Home, name: &str, options: &[&str]) -> Running {
    let sizes = ["--memory", "64M", "--hotplug", "256M", "--serial", "stdout"];
    let mut vm = home.start(name, &[&sizes, options].concat());
    vm.wait_for_driver();
    vm
}

/// What a command with `--json` printed.
fn json(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "one value, one line: {text}");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_resize_that_is_waited_for_ends_when_the_guest_is_there() {
    let home = Home::new();
    let vm = start(&home, "grows", &[]);
    let said = vm.order("resize", &["192M", "--wait", "100"]).success();
    assert!(said.starts_with("grows: has 192 MiB after "), "{said}");
    let report = json(&vm.order("resize", &["-64M", "--wait", "100", "--json"]).success());
    assert_eq!(
        (report["outcome"].as_str(), report["reached_bytes"].as_u64()),
        (Some("reached"), Some(128 * MIB))
    );
    let stats = vm.stats();
    assert_eq!(
        (stats.number("total_plugged"), stats.number("plugged_size")),
        (128 * MIB, 64 * MIB)
    );
    let report = json(&vm.order("resize", &["+2M", "--json"]).success());
    assert_eq!(
        (report["outcome"].as_str(), report["target_bytes"].as_u64()),
        (Some("requested"), Some(130 * MIB))
    );
}

#[test]
fn a_resize_that_the_guest_cannot_do_says_how_far_it_got_and_why() {
    let home = Home::new();
    let mut vm = start(&home, "full", &["--program", "hog size=160M"]);
    vm.resize("320M");
    vm.wait_until("the program filling its memory", |stats| {
        stats.number("host_resident_bytes") > 160 * MIB
    });
    let outcome = vm.order("resize", &["64M", "--wait", "8"]);
    outcome.assert_refusal(
        1,
        &[
            "\"full\": has ",
            "not 64 MiB, after ",
            "(the guest says: no-memory (",
            "programs need its memory: ",
            " KiB that must remain",
        ],
    );
    let outcome = vm.order("resize", &["64M", "--wait", "4", "--json"]);
    assert_eq!(
        (outcome.status, outcome.stderr.lines().count()),
        (1, 1),
        "{outcome:?}"
    );
    let report = json(&outcome.stdout);
    assert_eq!(report["outcome"], "incomplete");
    let (refusal, words) = (&report["guest_refusal"], report["guest_reason"].as_str());
    assert!(
        words.is_some_and(|words| words.starts_with("no-memory (")),
        "{report}"
    );
    assert_eq!(refusal["reason"], "no-memory", "{report}");
    let number = |field: &str| refusal[field].as_u64().expect(field);
    assert!(number("needed_bytes") > 0 && number("spare_bytes") < 320 * MIB);
    assert!(
        (4 * MIB..=32 * MIB).contains(&number("reserve_bytes")),
        "{report}"
    );
    assert!(refusal["blocks"]["no_memory"].as_u64() > Some(0), "{report}");
    let reached = report["reached_bytes"].as_u64().expect("a number");
    assert!(
        (160 * MIB..320 * MIB).contains(&reached),
        "some was given back, but not what is in use: {reached}"
    );
}

#[test]
fn signals_end_a_vm_in_order() {
    for signal in ["INT", "TERM", "HUP"] {
        let home = Home::new();
        let mut vm = start(&home, "signalled", &[]);
        vm.signal(signal);
        assert_eq!(vm.wait_for_end(), 0, "SIG{signal}");
        home.assert_nothing_left();
    }
}

#[test]
fn stop_returns_at_once_or_when_the_vm_is_gone() {
    let home = Home::new();
    let mut vm = start(&home, "one", &[]);
    vm.order("stop", &["--wait"]).success();
    home.run(["stats", "one"]).assert_refusal(1, &["\"one\""]);
    assert_eq!(vm.wait_for_end(), 0);
    home.assert_nothing_left();
    let mut vm = start(&home, "one", &[]);
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    home.assert_nothing_left();
}

#[test]
fn a_waiting_resize_hears_of_the_end_of_the_vm() {
    let home = Home::new();
    let mut vm = start(&home, "ends", &["--program", "hog size=160M"]);
    vm.resize("320M");
    vm.wait_until("the program filling its memory", |stats| {
        stats.number("host_resident_bytes") > 160 * MIB
    });
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| home.run(["resize", "ends", "64M", "--wait", "600"]));
        eventually("the resize being asked for", || {
            (vm.stats().number("requested_size") == 0).then_some(())
        });
        vm.order("stop", &[]).success();
        waiter
            .join()
            .expect("no panic")
            .assert_refusal(1, &["\"ends\"", "has"]);
    });
    assert_eq!(vm.wait_for_end(), 0);
}

#[test]
fn ps_and_stats_say_the_same_of_a_vm() {
    let home = Home::new();
    let vm = start(&home, "seen", &[]);
    vm.resize("128M");
    let list = json(&home.run(["ps", "--json"]).success());
    let stats = json(&vm.order("stats", &["--json"]).success());
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    for field in [
        "name",
        "pid",
        "state",
        "boot_memory",
        "plugged_size",
        "total_requested",
        "block_size",
    ] {
        assert!(!stats[field].is_null(), "{field} in {stats}");
        assert_eq!(list[0][field], stats[field], "{field}");
    }
    let table = home.run(["ps"]).success();
    let line = table.lines().nth(1).expect("a line for the VM");
    assert!(
        line.contains("seen") && line.contains("running") && line.contains("128 MiB / 128 MiB"),
        "{table}"
    );
}

#[test]
fn a_vm_file_describes_a_vm_and_the_command_line_changes_it() {
    let home = Home::new();
    let path = home.files().join("vm.toml");
    fs::write(
        &path,
        "name = \"filed\"\nmemory = \"64M\"\nhotplug = \"128M,requested=64M\"\nserial = \"discard\"\n",
    )
    .expect("written");
    let path = path.to_str().expect("a plain path");
    let mut vm = home.start("other-name", &["--config", path, "--block-size", "4M"]);
    vm.wait_for_driver();
    let stats = vm.wait_until("what was asked for at boot", |stats| {
        stats.number("plugged_size") == 64 * MIB
    });
    assert_eq!(
        (stats.text("name"), stats.number("block_size")),
        ("other-name", 4 * MIB)
    );
    assert_eq!(vm.serial.text(), "", "the file sends the console nowhere");
}

#[test]
fn the_image_is_the_guest_that_runs() {
    let home = Home::new();
    let path = home.files().join("guest.elf");
    let file = path.to_str().expect("a plain path");
    home.run(["image", file]).success();
    assert_eq!(fs::read(&path).expect("written")[..4], *b"\x7fELF");
    let cmdline = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
    let mut vm = start(&home, "from-file", &["--kernel", file, "--cmdline", cmdline]);
    vm.resize("128M");
    assert!(vm.guest("help").contains("meminfo"));
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    home.run(["image", "/nonexistent/guest.elf"])
        .assert_refusal(1, &["/nonexistent/guest.elf", "No such file"]);
}
