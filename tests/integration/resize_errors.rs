//! `ballast resize` refuses what cannot be, before the guest sees any of it.

use integration_tests::Home;

#[test]
fn sizes_a_vm_cannot_have_are_refused_with_value_and_rule() {
    let home = Home::new();
    let mut vm = home.start(
        "sized",
        &["--memory", "64M", "--hotplug", "128M", "--block-size", "4M"],
    );
    vm.wait_for_driver();
    let before = vm.stats().number("requested_size");
    vm.order("resize", &["196M"])
        .assert_refusal(1, &["sized", "beyond"]);
    vm.order("resize", &["32M"])
        .assert_refusal(1, &["sized", "below the boot memory"]);
    vm.order("resize", &["66M"])
        .assert_refusal(1, &["sized", "block size"]);
    for (size, rule) in [
        ("0x10", "0x10"),
        ("", "size"),
        ("12Q", "12Q"),
        ("99999999999T", "99999999999T"),
    ] {
        vm.order("resize", &[size]).assert_refusal(2, &[rule]);
    }
    vm.order("resize", &["64M", "--wait", "soon"])
        .assert_refusal(2, &["soon"]);
    assert_eq!(vm.stats().number("requested_size"), before);
}

#[test]
fn a_vm_without_a_region_cannot_be_resized() {
    let home = Home::new();
    let vm = home.start("fixed", &["--memory", "64M"]);
    integration_tests::eventually("the VM answering", || {
        (vm.order("stats", &["--json"]).status == 0).then_some(())
    });
    vm.order("resize", &["128M"])
        .assert_refusal(1, &["fixed", "no hot-plug region"]);
}

#[test]
fn unknown_and_exited_vms_are_named() {
    let home = Home::new();
    let mut vm = home.start("gone", &["--memory", "64M", "--program", "hog size=4M rounds=1"]);
    assert_eq!(vm.wait_for_end(), 0);
    for name in ["gone", "never"] {
        home.run(["resize", name, "64M"]).assert_refusal(1, &[name]);
        home.run(["stats", name]).assert_refusal(1, &[name]);
        home.run(["stop", name]).assert_refusal(1, &[name]);
        home.run(["guest", name, "meminfo"]).assert_refusal(1, &[name]);
    }
    home.run(["resize", "../etc", "64M"])
        .assert_refusal(2, &["../etc"]);
    home.assert_nothing_left();
}
