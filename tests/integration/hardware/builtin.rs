//! The built-in guest on a KVM like hardware's: the same image as on software KVM, with every trap at full speed.

use integration_tests::{Home, needs_hardware_kvm, views};

#[test]
fn the_built_in_guest_grows_and_shrinks_while_a_hog_verifies() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let arguments = [
            "--memory",
            "128M",
            "--hotplug",
            "256M",
            "--program",
            "hog fill=60%",
        ];
        let mut vm = home.start("built", &arguments);
        vm.wait_for_driver();
        vm.resize("384M");
        vm.wait_for_checks(100);
        vm.resize("160M");
        vm.wait_for_checks(100);
        let counts = views::vmstat(&vm.guest("vmstat"));
        assert!(counts["pgmigrate_success"] > 0, "nothing was moved: {counts:?}");
        assert_eq!(vm.stats().number("violations"), 0);
        vm.order("stop", &[]).success();
        assert_eq!(vm.wait_for_end(), 0);
    });
}

#[test]
fn a_trespass_is_caught_where_the_guest_runs_by_nested_paging_too() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let program = "trespass gpa=0x100a00000";
        let mut vm = home.start(
            "built",
            &["--memory", "64M", "--hotplug", "128M", "--program", program],
        );
        assert_eq!(vm.wait_for_end(), 4);
        let messages = vm.messages.text();
        let expected = "violation: guest access to unplugged block 5 of region 0 at gpa 0x100a00000";
        assert!(messages.contains(expected), "{messages}");
        home.assert_nothing_left();
    });
}
