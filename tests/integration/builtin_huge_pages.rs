//! Reserved huge pages of the built-in guest, and what it shows of the memory of its programs.

use std::collections::BTreeSet;

use integration_tests::views::pagemap::Frame;
use integration_tests::views::{self, Numbers};
use integration_tests::{Home, Running, eventually};

use crate::held::{Held, KIND, Kind};

fn wait_for(vm: &Running, text: &str) {
    eventually(text, || vm.serial.text().contains(text).then_some(()));
}

/// Waits until the first program has checked its memory once more.
fn wait_for_check(vm: &Running) {
    let before = vm.programs()[0].checks_ok;
    eventually("the program checking its memory", || {
        let programs = vm.programs();
        assert_eq!(programs[0].checks_failed, 0, "{programs:?}");
        (programs[0].checks_ok > before).then_some(())
    });
}

fn pool(vm: &Running) -> (u64, u64, u64) {
    let info = views::meminfo(&vm.guest("meminfo"));
    (
        info["HugePages_Total"],
        info["HugePages_Free"],
        info["HugePages_Rsvd"],
    )
}

/// The sum of a field over all areas of a program.
fn sum(smaps: &str, field: &str) -> u64 {
    let lines = smaps
        .lines()
        .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    lines
        .map(|value| {
            value
                .trim()
                .strip_suffix(" kB")
                .unwrap()
                .trim()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

#[test]
fn reserved_huge_pages_are_promised_shared_and_moved_whole() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "128M",
        "--hotplug",
        "128M",
        "--cmdline",
        "hugepages=4 validate",
        "--program",
        "reserved chunks=3 seed=5",
    ];
    let mut vm = home.start("reserved", &arguments);
    vm.wait_for_driver();
    // The fourth page was free for what the child wrote to, and is again.
    wait_for(&vm, "the child has a copy");
    wait_for_check(&vm);
    assert_eq!(pool(&vm), (4, 1, 0));
    let smaps = vm.guest("smaps 1");
    assert_eq!(sum(&smaps, "Private_Hugetlb"), 6 << 10, "{smaps}");
    let maps = vm.guest("maps 1");
    assert!(
        maps.contains("rw-p") && maps.contains(" /anon_hugepage\n"),
        "{maps}"
    );
    // A pool that is made larger while memory is plugged lies there too, and comes back when it goes.
    vm.resize("256M");
    assert!(vm.guest("hugepages 40").contains("hugepages_total 40\n"));
    vm.resize("128M");
    let (total, free, _) = pool(&vm);
    assert!(total >= 3 && free == total - 3, "{total} {free}");
    wait_for_check(&vm);
    assert_eq!(views::vmstat(&vm.guest("vmstat"))["thp_migration_split"], 0);
    assert!(vm.guest("hugepages 0").contains("hugepages_total 3\n"));
    wait_for_check(&vm);
    for program in vm.programs() {
        assert_eq!(program.checks_failed, 0, "{program:?}");
    }
}

static HUGE: [Kind; 2] = [
    Kind {
        name: "huge",
        pages: 2048,
        is_huge: true,
        without: &["hugetlb"],
        ..KIND
    },
    Kind {
        name: "reserved",
        pages: 2048,
        is_huge: true,
        flags: &["anon", "hugetlb"],
        without: &[],
        ..KIND
    },
];

/// A guest with transparent and reserved huge pages on blocks, in which all that is free lies scattered.
fn scattered(home: &Home) -> Running {
    let [transparent, reserved] = HUGE.each_ref().map(|kind| kind.program("80M"));
    let memory = [
        "--memory",
        "64M",
        "--hotplug",
        "128M",
        "--block-size",
        "4M",
        "--cpus",
        "2",
    ];
    // Nothing but what is tested here makes huge pages.
    let cmdline = ["--cmdline", "thp_defrag=never migrate=remap validate"];
    let programs = [
        "--program",
        &transparent,
        "--program",
        &reserved,
        "--program",
        "scatter fill=95% huge=1 from=150M seed=3",
    ];
    let mut vm = home.start("stages", &[&memory[..], &cmdline, &programs].concat());
    vm.wait_for_driver();
    vm.resize("112M");
    vm.order("guest", &["hugepages", "4"]).success();
    for kind in &HUGE {
        Held::by(&vm, kind);
    }
    vm.resize("192M");
    wait_for(&vm, "more chunks taken");
    vm
}

#[test]
fn huge_pages_leave_whole_after_small_ones_have_moved_together_to_make_room_for_them() {
    let home = Home::new();
    let mut vm = scattered(&home);
    let held = HUGE.each_ref().map(|kind| Held::by(&vm, kind));
    let blocks = held.iter().flat_map(|held| held.blocks_with(2048).into_keys());
    let blocks: BTreeSet<u64> = blocks.collect();
    for block in &blocks {
        // They stay offline: a free one would have room.
        vm.order(
            "guest",
            &["sysfs", &format!("memory/memory{block}/state"), "offline"],
        )
        .success();
    }
    for held in &held {
        held.wait_for_checks();
        let frames = held.frames();
        let has_left = |block: Option<u64>| block.is_none_or(|block| !blocks.contains(&block));
        let is_right = |it: &Frame| has_left(it.block) && it.head.is_multiple_of(512);
        assert!(frames.len() == 2048 && frames.iter().all(is_right), "{frames:?}");
    }
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert_eq!(counts["thp_migration_split"], 0, "{counts:?}");
    assert!(counts["thp_migration_success"] >= 8, "{counts:?}");
    assert!(counts["thp_migration_compacted"] >= 4, "{counts:?}");
    assert!(
        counts["compact_isolated"] > 0 && counts["blocks_unplug_pass_more"] == 0,
        "{counts:?}"
    );
    assert_eq!(pool(&vm), (4, 0, 0));
    vm.wait_for_checks(1);
    vm.stop();
}

#[test]
fn a_child_without_a_page_for_its_copy_is_ended_and_its_parent_goes_on() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "128M",
        "--cmdline",
        "hugepages=2",
        "--program",
        "reserved chunks=2 seed=5",
        "--program",
        "reserved chunks=1 rounds=1",
    ];
    let vm = home.start("copies", &arguments);
    wait_for(&vm, "the child was ended: no page for its copy");
    // The other one found the pool promised away, and did not start.
    wait_for(&vm, "can be reserved");
    eventually("the second program's end", || {
        let programs = vm.programs();
        let has_ended = programs.iter().any(|program| program.state == "exited(3)");
        has_ended.then_some(())
    });
    // Its parent has seen the end of the child, and nobody else was ended.
    assert_eq!(vm.serial.text().matches(": killed").count(), 1);
    wait_for_check(&vm);
}

#[test]
fn the_memory_of_a_program_is_shown_area_by_area_as_linux_does() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "128M",
        "--program",
        "hog size=8M pages=mixed",
        "--program",
        "hog size=2M rounds=1",
    ];
    let vm = home.start("smaps", &arguments);
    wait_for(&vm, "hog[2]: exited(0)");
    let before = vm.programs()[0].checks_ok;
    eventually("checks", || (vm.programs()[0].checks_ok > before).then_some(()));
    let (smaps, rss_kib) = (vm.guest("smaps 1"), vm.programs()[0].rss_kib);
    assert_eq!(sum(&smaps, "Rss"), rss_kib, "{smaps}");
    assert_eq!(sum(&smaps, "Pss"), rss_kib, "nothing is shared: {smaps}");
    assert_eq!(sum(&smaps, "Anonymous"), rss_kib, "{smaps}");
    assert_eq!(
        sum(&smaps, "AnonHugePages"),
        4 << 10,
        "every second chunk: {smaps}"
    );
    let kinds = ["Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty"];
    assert_eq!(
        kinds.iter().map(|kind| sum(&smaps, kind)).sum::<u64>(),
        rss_kib,
        "{smaps}"
    );
    // The same areas, one line each.
    let maps = vm.guest("maps 1");
    let headings = smaps
        .lines()
        .filter(|line| line.contains("00:00"))
        .collect::<Vec<_>>();
    assert_eq!(maps.lines().collect::<Vec<_>>(), headings);
    assert!(maps.contains(" [stack]\n"), "{maps}");
    for (question, reason) in [
        ("smaps 77", "no program 77"),
        ("maps 2", "program 2 has ended: exited(0)"),
        ("maps x", "x is not a program's number"),
        ("maps", "maps takes a program's number"),
    ] {
        vm.order("guest", &question.split(' ').collect::<Vec<_>>())
            .assert_refusal(1, &[reason]);
    }
    // The lists of pages have what programs have.
    let info: Numbers = views::meminfo(&vm.guest("meminfo"));
    assert_eq!(
        info["Active"] + info["Inactive"],
        info["AnonPages"] + info["Cached"],
        "{info:?}"
    );
    assert_eq!(
        info["Active(anon)"] + info["Inactive(anon)"],
        info["AnonPages"],
        "{info:?}"
    );
    assert!(vm.guest("lru").starts_with("NODE ZONE LIST CHUNKS ANON FILE"));
    assert!(vm.guest("cache").starts_with("MAPPING KIND SIZE PAGES DIRTY"));
    assert!(vm.guest("compact").contains("node 0 zone"));
}
