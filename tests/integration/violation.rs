//! A guest that touches memory it does not own is caught, with the right address, and answered by the policy.

use integration_tests::Home;

/// Where the hot-plug region of a guest with less than 3 GiB of boot memory starts.
const REGION: u64 = 4 << 30;
const BLOCK: u64 = 2 << 20;

#[test]
fn a_trespass_is_reported_with_its_address_and_kills_with_exit_status_4() {
    let home = Home::new();
    let program = format!("trespass gpa={:#x}", REGION + 37 * BLOCK + 0x5000);
    let mut vm = home.start(
        "bad",
        &["--memory", "64M", "--hotplug", "128M", "--program", &program],
    );
    assert_eq!(vm.wait_for_end(), 4);
    let messages = vm.messages.text();
    let expected = "violation: guest access to unplugged block 37 of region 0 at gpa 0x104a05000";
    assert!(messages.contains(expected), "{messages}");
    home.assert_nothing_left();
}

#[test]
fn the_first_unplugged_block_is_after_the_plugged_ones() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "64M",
        "--hotplug",
        "128M,requested=8M",
        "--program",
        "trespass gpa=first-unplugged",
    ];
    let mut vm = home.start("bad", &arguments);
    assert_eq!(vm.wait_for_end(), 4);
    assert!(
        vm.messages
            .text()
            .contains("violation: guest access to unplugged block "),
        "{}",
        vm.messages.text()
    );
}

#[test]
fn under_the_policy_pause_the_vm_stays_for_inspection() {
    let home = Home::new();
    let program = format!("trespass gpa={:#x}", REGION + 2 * BLOCK);
    let arguments = [
        "--memory",
        "64M",
        "--hotplug",
        "128M",
        "--on-violation",
        "pause",
        "--program",
        &program,
    ];
    let mut vm = home.start("bad", &arguments);
    let stats = vm.wait_until("the violation", |stats| stats.number("violations") > 0);
    assert_eq!(stats.number("last_violation_gpa"), REGION + 2 * BLOCK);
    let stats = vm.wait_until("the pause", |stats| stats.text("state") == "paused");
    assert_eq!(stats.number("violations"), 1);
    let expected = "violation: guest access to unplugged block 2 of region 0 at gpa 0x100400000";
    assert!(vm.messages.text().contains(expected), "{}", vm.messages.text());
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    home.assert_nothing_left();
}

#[test]
fn a_block_that_was_given_back_is_protected_again() {
    let home = Home::new();
    let program = "trespass gpa=given-back";
    let mut vm = home.start(
        "bad",
        &["--memory", "64M", "--hotplug", "64M", "--program", program],
    );
    vm.wait_for_driver();
    // The program has to know which block it is before that comes.
    vm.serial.wait_for("waiting for the block at 0x100000000");
    vm.resize("128M");
    // The guest may be caught before the order is answered.
    vm.order("resize", &["64M", "--wait", "100"]);
    assert_eq!(vm.wait_for_end(), 4);
    let messages = vm.messages.text();
    let expected = "violation: guest access to unplugged block 0 of region 0 at gpa 0x100000000";
    assert!(messages.contains(expected), "{messages}");
}
