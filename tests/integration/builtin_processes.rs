//! Programs of the built-in guest that fork: each member of a family finds its own contents, also while blocks leave under it.

use integration_tests::{Home, eventually};

#[test]
fn a_family_shares_its_pages_until_one_writes_and_every_member_finds_its_own() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "128M",
        "--cpus",
        "2",
        "--cmdline",
        "validate",
        "--program",
        "family chunks=3 children=3 rounds=2 seed=3",
    ];
    let mut vm = home.start("family", &arguments);
    assert_eq!(vm.wait_for_end(), 0);
    let said = vm.serial.text();
    assert!(said.contains("2 rounds, 6 forks, 0 checks failed"), "{said}");
    assert!(!said.contains("is wrong") && !said.contains("killed"), "{said}");
    home.assert_nothing_left();
}

#[test]
fn blocks_leave_under_a_family_whose_members_share_pages_and_nobody_notices() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "128M",
        "--hotplug",
        "256M",
        "--cpus",
        "2",
        "--program",
        "family chunks=3 children=3 seed=5",
        "--program",
        "hog fill=25% seed=6",
    ];
    let mut vm = home.start("forks", &arguments);
    vm.wait_for_driver();
    for total in ["320M", "128M"] {
        vm.resize(total);
        let members = vm.programs().len();
        eventually("the family has forked again", || {
            (vm.programs().len() > members + 6).then_some(())
        });
    }
    let counts = integration_tests::views::vmstat(&vm.guest("vmstat"));
    assert!(counts["pgmigrate_success"] > 0, "no page was moved: {counts:?}");
    assert!(
        counts["pgcow"] > 0 && counts["pgreuse"] > 0,
        "nothing was shared: {counts:?}"
    );
    for program in vm.programs() {
        assert_eq!(program.checks_failed, 0, "{program:?}");
        assert!(program.state != "killed", "{program:?}");
    }
    assert_eq!(vm.stats().number("violations"), 0);
}
