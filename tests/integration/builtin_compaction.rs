//! Huge pages in the built-in guest after its free memory was scattered: by compaction, and only by it.

use integration_tests::views::physical::buddyinfo;
use integration_tests::views::{self, Numbers};
use integration_tests::{Home, Running, eventually};

/// A guest whose program scatters what is free and then asks for more huge pages than are left in one piece, and its counters once it has checked all of that.
fn scattered(home: &Home, name: &str, cmdline: &str) -> (Running, Numbers) {
    let arguments = [
        "--memory",
        "128M",
        "--cmdline",
        cmdline,
        "--program",
        "scatter fill=95% huge=12 seed=3",
    ];
    let mut vm = home.start(name, &arguments);
    eventually("the program has asked for huge pages", || {
        vm.serial.text().contains("more chunks taken").then_some(())
    });
    vm.wait_for_checks(1);
    let counts = views::vmstat(&vm.guest("vmstat"));
    (vm, counts)
}

/// Free pageblocks.
fn pageblocks(vm: &Running) -> u64 {
    let zones = buddyinfo(&vm.guest("buddyinfo"));
    zones.iter().map(|(_, chunks)| chunks[9] + 2 * chunks[10]).sum()
}

#[test]
fn a_huge_page_can_be_had_from_scattered_memory_and_only_by_compaction() {
    let home = Home::new();
    {
        let (mut vm, counts) = scattered(&home, "never", "thp_defrag=never");
        assert_eq!(counts["compact_stall"], 0, "{counts:?}");
        assert_eq!(counts["compact_daemon_migrate_scanned"], 0, "{counts:?}");
        assert!(
            counts["thp_fault_fallback"] > 0,
            "memory was not scattered: {counts:?}"
        );
        // An operator's word does it all the same.
        let before = pageblocks(&vm);
        let said = vm.guest("compact");
        let (after, counts) = (pageblocks(&vm), views::vmstat(&vm.guest("vmstat")));
        assert!(
            after >= before + 8,
            "{before} and then {after} free pageblocks: {said}"
        );
        assert!(counts["compact_isolated"] > 0, "{counts:?}");
        vm.wait_for_checks(1);
    }
    {
        let (vm, counts) = scattered(&home, "always", "thp_defrag=always");
        assert_eq!(
            (counts["thp_fault_alloc"], counts["thp_fault_fallback"]),
            (12, 0),
            "{counts:?}"
        );
        assert!(counts["compact_success"] >= 1, "{counts:?}");
        assert!(counts["compact_isolated"] > 0, "{counts:?}");
        assert_eq!(vm.programs()[0].checks_failed, 0);
    }
}

#[test]
fn the_daemon_compacts_what_no_fault_does() {
    let home = Home::new();
    let (mut vm, _) = scattered(&home, "defer", "thp_defrag=defer");
    // Woken by the first request that failed, it has made a pageblock for a later one.
    let counts = eventually("the daemon emptying a pageblock", || {
        let counts = views::vmstat(&vm.guest("vmstat"));
        (counts["compact_daemon_wake"] > 0 && counts["compact_isolated"] > 0).then_some(counts)
    });
    assert!(counts["compact_daemon_migrate_scanned"] > 0, "{counts:?}");
    assert_eq!(
        (counts["compact_stall"], counts["compact_success"]),
        (0, 0),
        "{counts:?}"
    );
    vm.wait_for_checks(1);
}
