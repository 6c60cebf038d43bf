//! Programs of the built-in guest that fork: each member of a family finds its own contents, also while blocks leave under it, and while there is
//! not enough memory for all; and what ended leaves nothing behind.

use integration_tests::views::physical::slabinfo;
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
        let forks = || integration_tests::views::vmstat(&vm.guest("vmstat"))["processes"];
        let before = forks();
        eventually("the family has forked again", || {
            (forks() > before + 6).then_some(())
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

/// Objects in use of a cache of the guest's manager.
fn in_use(vm: &integration_tests::Running, cache: &str) -> u64 {
    let caches = slabinfo(&vm.guest("slabinfo"));
    let found = caches.iter().find(|found| found.name == cache);
    found
        .unwrap_or_else(|| panic!("no cache {cache}: {caches:?}"))
        .active_objects
}

#[test]
fn a_fork_storm_with_half_the_memory_finds_its_own_data_and_leaves_nothing_behind() {
    let home = Home::new();
    let image = home.swap_image("swap", "256M");
    let image = image.to_str().unwrap();
    let arguments = [
        "--memory",
        "32M",
        "--cpus",
        "2",
        "--disk",
        image,
        "--cmdline",
        "swap=vda validate",
        "--program",
        "storm width=5 depth=2 stay",
    ];
    let mut vm = home.start("storm", &arguments);
    eventually("the end of the storm", || {
        vm.serial.text().contains("1 storms").then_some(())
    });
    let counts = || integration_tests::views::vmstat(&vm.guest("vmstat"));
    // Those that nobody waits for may live a little longer.
    eventually("the end of the orphans", || {
        (counts()["nr_processes"] == 1).then_some(())
    });
    let counts = counts();
    // 5 + 25 forks.
    assert_eq!(counts["processes"], 1 + 30, "{counts:?}");
    assert_eq!(
        (counts["oom_kill"], counts["oom_no_victim"]),
        (0, 0),
        "{counts:?}"
    );
    assert!(counts["pswpout"] > 1000 && counts["pswpin"] > 1000, "{counts:?}");
    // What is left is the first member's: its 2 MiB, and what its image and stack take.
    assert!(counts["nr_anon_pages"] < 1000, "{counts:?}");
    assert!(counts["nr_page_table_pages"] < 16, "{counts:?}");
    assert_eq!(["program", "context"].map(|cache| in_use(&vm, cache)), [1, 1]);
    let said = vm.serial.text();
    assert!(said.contains("1 storms, 0 checks failed"), "{said}");
    assert!(!said.contains("is wrong") && !said.contains("killed"), "{said}");
    // Its children's checks, and their children's, are the first one's.
    let programs = vm.programs();
    assert_eq!(programs.len(), 1, "{programs:?}");
    assert!(
        programs[0].checks_ok > 25 * 4 * 512 && programs[0].checks_failed == 0,
        "{programs:?}"
    );
    vm.stop();
}

#[test]
fn what_a_program_has_only_looked_at_is_zero_and_takes_no_memory() {
    let home = Home::new();
    // 8 MiB of which it stores to 32 pages, and its child to its own.
    let arguments = [
        "--memory",
        "64M",
        "--cmdline",
        "validate",
        "--program",
        "sparse chunks=4 one_in=64",
    ];
    let mut vm = home.start("sparse", &arguments);
    vm.serial.wait_for("sparse: 0 checks failed");
    let program = &vm.programs()[0];
    // Three looks at everything, the child's, and its end.
    assert_eq!((program.checks_ok, program.checks_failed), (4 * 2048 + 1, 0));
    assert!((128..1024).contains(&program.rss_kib), "{program:?}");
    vm.stop();
}
