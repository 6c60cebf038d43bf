//! Each kind of pages, held by a program of its own, and what becomes of it when the blocks under it are taken away: the program finds what it wrote
//! before, meanwhile and afterwards, and the pages are of that kind still. Then all kinds at once, on removable memory that is three quarters full.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use integration_tests::views::{self, Numbers};
use integration_tests::{Home, Running, eventually};

use crate::held::{Held, KIND, Kind};

const MIB: u64 = 1 << 20;
/// Bytes of a block in these tests.
const BLOCK: u64 = 4 * MIB;
/// One request, and the next one in a week.
pub(crate) const STANDS_STILL: &str = r#"{"ops": {"size": 1, "refill_time": 604800000}}"#;
/// As fast as it can.
pub(crate) const UNLIMITED: &str =
    r#"{"ops": {"size": 0, "refill_time": 0}, "bandwidth": {"size": 0, "refill_time": 0}}"#;
/// So slow that pages are on their way for some time.
const SLOW: &str = r#"{"ops": {"size": 1, "refill_time": 8}}"#;

/// Those that need no disk but the swap area.
pub(crate) static IN_MEMORY: [Kind; 8] = [
    Kind {
        name: "anonymous",
        ..KIND
    },
    Kind {
        name: "swapped",
        flags: &["anon", "swapcache", "uptodate"],
        without: &["dirty"],
        ..KIND
    },
    Kind {
        name: "forked",
        mapcount: 2,
        ..KIND
    },
    Kind {
        name: "shmem",
        flags: &["file"],
        without: &["private"],
        ..KIND
    },
    Kind {
        name: "locked",
        flags: &["anon", "mlocked"],
        without: &[],
        ..KIND
    },
    Kind {
        name: "huge",
        pages: 1024,
        is_huge: true,
        without: &["hugetlb"],
        counter: "thp_migration_success",
        ..KIND
    },
    Kind {
        name: "reserved",
        pages: 1024,
        flags: &["anon", "hugetlb"],
        without: &[],
        is_huge: true,
        counter: "thp_migration_success",
        ..KIND
    },
    Kind {
        name: "nonlinear",
        flags: &["file"],
        without: &["private"],
        ..KIND
    },
];

/// Those of files on a disk. What the file system has on a page moves with it.
pub(crate) static OF_FILES: [Kind; 4] = [
    Kind {
        name: "clean",
        flags: &["file", "uptodate", "private"],
        without: &["dirty", "writeback"],
        counter: "fs_page_migrated",
        ..KIND
    },
    Kind {
        name: "hole",
        flags: &["file", "uptodate"],
        without: &["dirty", "writeback", "private"],
        ..KIND
    },
    Kind {
        name: "dirty",
        flags: &["file", "uptodate", "dirty", "private"],
        without: &[],
        counter: "fs_page_migrated",
        ..KIND
    },
    WRITE_BACK,
];

pub(crate) const WRITE_BACK: Kind = Kind {
    name: "writeback",
    flags: &["file", "uptodate", "writeback", "private"],
    without: &[],
    counter: "fs_page_migrated",
    ..KIND
};

/// Those that a disk reads into, past the page cache.
pub(crate) const DIRECT: Kind = Kind {
    name: "direct",
    flags: &["anon"],
    without: &["swapcache"],
    ..KIND
};

fn counts(vm: &Running) -> Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

fn set(vm: &Running, path: &str, value: &str) -> integration_tests::Outcome {
    vm.order("guest", &["sysfs", path, value])
}

fn state(block: u64) -> String {
    format!("memory/memory{block}/state")
}

/// A guest whose 128 MiB of removable memory are there from the beginning.
pub(super) fn start(home: &Home, disks: &[&str], cmdline: &str, programs: &[String]) -> Running {
    let mut arguments = vec!["--cpus", "2", "--memory", "64M", "--cmdline", cmdline];
    arguments.extend(["--hotplug", "128M,requested=128M", "--block-size", "4M"]);
    for disk in disks {
        arguments.extend(["--disk", disk]);
    }
    for program in programs {
        arguments.extend(["--program", program]);
    }
    let mut vm = home.start("kinds", &arguments);
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 128 * MIB
    });
    vm
}

/// When programs begin: with most of the removable memory there.
pub(super) const FROM: &str = "160M";

pub(crate) fn root(home: &Home) -> String {
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "64M"]).success();
    root
}

/// Unplugs the blocks that a program has its pages on, looks on, and brings as many back.
pub(crate) fn unplug_under(vm: &Running, held: &Held<'_>, least: u64) {
    let name = held.kind.name;
    held.wait_for_checks();
    let blocks = held.blocks_with(least);
    let (before, begun) = (counts(vm), held.checks());
    for &block in blocks.keys() {
        set(vm, &state(block), "offline").success();
    }
    let meanwhile = held.checks() - begun;
    assert!(
        meanwhile > 0,
        "{name}: no look at its pages while they left {blocks:?}"
    );
    // What is offline is what is unplugged.
    let total = vm.stats().number("total_plugged");
    vm.resize_to(total - blocks.len() as u64 * BLOCK);
    // The guest hears a moment later than the host that the device has taken them.
    eventually("their blocks being unplugged", || {
        let listed = views::blocks(&vm.guest("blocks"));
        let is_gone = |block: &u64| listed[usize::try_from(*block).unwrap()].state == "unplugged";
        blocks.keys().all(is_gone).then_some(())
    });
    let left = counts(vm);
    let moved = left[held.kind.counter] - before[held.kind.counter];
    assert!(moved > 0, "{name}: {} has not moved", held.kind.counter);
    let migrated = left["pgmigrate_success"] - before["pgmigrate_success"];
    assert!(
        migrated >= blocks.values().sum::<u64>(),
        "{name}: {migrated} of {blocks:?}"
    );
    held.wait_for_checks();
    // They are elsewhere, and what they were.
    let frames = held.frames();
    for frame in &frames {
        assert!(
            frame.block.is_none_or(|block| !blocks.contains_key(&block)),
            "{name}: {frame:?}"
        );
        assert!(
            !held.kind.is_huge || frame.head.is_multiple_of(512),
            "{name} is in pieces: {frame:?}"
        );
    }
    eventually("the same kind of pages", || {
        let same = held
            .frames()
            .iter()
            .filter(|frame| held.kind.is_one(frame))
            .count() as u64;
        (same >= least).then_some(())
    });
    vm.resize_to(total);
}

/// Each block that left did so at the first or second look at what is on it.
fn assert_two_passes(vm: &Running) -> Numbers {
    let counts = counts(vm);
    assert_eq!(counts["blocks_unplug_pass_more"], 0, "{counts:?}");
    assert!(counts["blocks_unplug_pass1"] > 0);
    counts
}

#[test]
fn blocks_leave_under_programs_that_hold_one_kind_of_memory_each() {
    let home = Home::new();
    let swap = home.swap_image("swap", "32M").display().to_string();
    let programs = IN_MEMORY.each_ref().map(|kind| kind.program(FROM));
    let vm = start(&home, &[&swap], "swap=vda migrate=remap validate", &programs);
    vm.order("guest", &["hugepages", "2"]).success();
    let held = IN_MEMORY.each_ref().map(|kind| Held::by(&vm, kind));
    // So fast that a block takes a moment.
    set(&vm, "memory/migrate_rate_mib", "64").success();
    for held in &held {
        unplug_under(&vm, held, held.kind.pages / 2);
    }
    let counts = assert_two_passes(&vm);
    assert_eq!(counts["thp_migration_split"], 0, "{counts:?}");
    // Whoever stores to a page that has moved may do so at once: its rights have come along.
    let (faults, moves) = (counts["pgreuse"], counts["pgmigrate_success"]);
    assert!(
        faults * 32 <= moves,
        "{faults} stores were not permitted after {moves} moves"
    );
    let mut vm = vm;
    vm.wait_for_checks(1000);
    vm.stop();
}

#[test]
fn blocks_leave_under_programs_that_hold_one_kind_of_file_pages_each() {
    let home = Home::new();
    let root = root(&home);
    let programs = OF_FILES.each_ref().map(|kind| kind.program(FROM));
    let cmdline = "root=vda migrate=remap dirty_expire_cs=6000 validate";
    let vm = start(&home, &[&root], cmdline, &programs);
    let held = OF_FILES.each_ref().map(|kind| Held::by(&vm, kind));
    set(&vm, "memory/migrate_rate_mib", "64").success();
    for held in held.iter().filter(|held| held.kind.name != "writeback") {
        unplug_under(&vm, held, held.kind.pages / 2);
    }
    // With a slow disk pages are on their way for longer than a look at a block takes: they are waited for in the second.
    let [.., written] = &held;
    vm.limit_disk(0, SLOW);
    eventually("blocks that left in a second pass", || {
        unplug_under(&vm, written, 1);
        (counts(&vm)["blocks_unplug_pass2"] > 0).then_some(())
    });
    assert_two_passes(&vm);
    assert_written_page_is_named(&vm, written);
    let plugged = vm.stats().number("total_requested");
    vm.limit_disk(0, UNLIMITED);
    let mut vm = vm;
    vm.wait_until("the rest of the blocks gone", |stats| {
        stats.number("plugged_size") + 64 * MIB == plugged
    });
    vm.resize_to(192 * MIB);
    vm.wait_for_checks(1000);
    vm.stop();
    assert!(home.run(["disk", "check", &root]).success().contains("whole:"));
}

/// While the disk stands still a page that is on its way there keeps its block: the result names it, its kind, and the disk.
fn assert_written_page_is_named(vm: &Running, written: &Held<'_>) {
    vm.limit_disk(0, STANDS_STILL);
    let report = eventually("a page that the disk does not take", || {
        let blocks = written.blocks();
        // All that do not hold such pages can go.
        let report = vm.try_resize(64 * MIB, 2);
        let is_written = report.find_text("guest_refusal.reason") == Some("writeback");
        (is_written && !blocks.is_empty()).then_some(report)
    });
    assert_eq!(report.text("outcome"), "incomplete", "{report:?}");
    for (field, value) in [("kind", "file"), ("file_system", "pagefs"), ("holder", "vda")] {
        assert_eq!(
            report.text(&format!("guest_refusal.{field}")),
            value,
            "{report:?}"
        );
    }
    let pfn = report.number("guest_refusal.pfn");
    let words = report.text("guest_reason");
    let page = format!("pfn {pfn:#x} (order 0, of a file of pagefs) is being written to vda");
    assert!(words.contains(&page), "{words}");
    let frame = vm.guest(&format!("frame {pfn}"));
    assert!(frame.contains("writeback"), "{frame}");
    let said = vm.order("resize", &["64M", "--wait", "1"]);
    said.assert_refusal(1, &["(the guest says: ", ") is being written to vda"]);
}

#[test]
fn a_page_that_a_disk_reads_into_is_named_with_its_holder_and_leaves_when_the_disk_is_done() {
    let home = Home::new();
    let root = root(&home);
    let bystander = &IN_MEMORY[0];
    let mut programs = [&DIRECT, bystander].map(|kind| kind.program(FROM));
    // Most of the time the disk is not at it.
    programs[0].push_str(" pause_ms=100");
    let vm = start(&home, &[&root], "root=vda migrate=remap validate", &programs);
    let (held, other) = (Held::by(&vm, &DIRECT), Held::by(&vm, bystander));
    held.wait_for_checks();
    vm.limit_disk(0, STANDS_STILL);
    let pinned = eventually("pages that the disk is to read into", || {
        let frames = held.frames();
        let pinned: BTreeSet<u64> = frames
            .iter()
            .filter(|it| it.has(&["pinned"]))
            .filter_map(|it| it.block)
            .collect();
        (!pinned.is_empty()).then_some(pinned)
    });
    for &block in &pinned {
        set(&vm, &state(block), "offline").assert_refusal(1, &["is pinned by direct I/O"]);
        assert_eq!(
            vm.guest(&format!("sysfs {}", state(block))).trim(),
            "online",
            "it is put back"
        );
    }
    // All others leave.
    other.wait_for_checks();
    for block in views::blocks(&vm.guest("blocks")) {
        if block.state == "online" && !pinned.contains(&block.index) {
            set(&vm, &state(block.index), "offline").success();
            set(&vm, &state(block.index), "online").success();
        }
    }
    // Each of those is awaited for a while first.
    let report = vm.try_resize(64 * MIB, 10);
    assert_eq!(report.text("outcome"), "incomplete", "{report:?}");
    let why = report.text("guest_reason");
    assert!(why.contains("is pinned by direct I/O of kind["), "{why}");
    let left = vm.stats().number("plugged_size");
    assert_eq!(left, pinned.len() as u64 * BLOCK, "{report:?}");
    vm.limit_disk(0, UNLIMITED);
    let mut vm = vm;
    vm.wait_until("the rest", |stats| stats.number("plugged_size") == 0);
    vm.wait_for_checks(1000);
    vm.stop();
}

/// What is in no program's page tables, or must stay where it is.
const KEPT: [&str; 3] = [
    "kept what=ram pages=512 pause_ms=20",
    "kept what=buffer pages=64 again=1 pause_ms=20",
    "kept what=ring pages=64 pause_ms=5",
];
/// Blocks that leave together in each round.
const TOGETHER: u64 = 6;

/// Takes every block away and brings it back, over and over, under all kinds at once.
fn all_kinds(seconds: u64) {
    let home = Home::new();
    let (root, swap) = (root(&home), home.swap_image("swap", "128M").display().to_string());
    let mut programs: Vec<String> = IN_MEMORY
        .iter()
        .chain(&OF_FILES)
        .map(|kind| kind.program(FROM))
        .collect();
    programs.push(format!("kind of=direct pages=512 from={FROM} pause_ms=20"));
    // What fills the rest is there for its size.
    for (seed, kind) in [(70, "anonymous"), (71, "huge"), (72, "anonymous"), (73, "huge")] {
        programs.push(format!("kind of={kind} pages=4096 from={FROM} seed={seed}"));
    }
    programs.push(format!("kind of=anonymous pages=1500 from={FROM} seed=74"));
    programs.extend(KEPT.map(String::from));
    let mut vm = start(&home, &[&root, &swap], "root=vda swap=vdb", &programs);
    vm.order("guest", &["hugepages", "2"]).success();
    for kind in IN_MEMORY.iter().chain(&OF_FILES) {
        Held::by(&vm, kind);
    }
    let used = |vm: &Running| -> u64 {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().map(|block| block.used_pages * 4096).sum()
    };
    let begun = Instant::now();
    let (mut emptied, mut rounds) = (0, 0);
    while rounds < 2 || begun.elapsed() < Duration::from_secs(seconds) {
        // What has left for the swap area is wanted again.
        eventually("three quarters of the blocks in use", || {
            (used(&vm) >= 96 * MIB).then_some(())
        });
        // Several at a time, for the host, and each one by itself.
        vm.resize_to(192 * MIB - TOGETHER * BLOCK);
        vm.resize_to(192 * MIB);
        emptied += TOGETHER;
        for block in views::blocks(&vm.guest("blocks")) {
            set(&vm, &state(block.index), "offline").success();
            emptied += 1;
            set(&vm, &state(block.index), "online").success();
        }
        rounds += 1;
    }
    let counts = assert_two_passes(&vm);
    println!(
        "{rounds} rounds in {} s: {emptied} blocks left, {} in one pass and {} in two; {} pages moved, {} dropped, {} written; {} MiB in use",
        begun.elapsed().as_secs(),
        counts["blocks_unplug_pass1"],
        counts["blocks_unplug_pass2"],
        counts["pgmigrate_success"],
        counts["block_pages_dropped"],
        counts["block_pages_written"],
        used(&vm) / MIB,
    );
    assert_eq!(counts["blocks_unplugged"], emptied);
    assert_eq!(counts["blocks_put_back"], 0, "{counts:?}");
    vm.wait_for_checks(500);
    assert_eq!(counts["oom_kill"], 0);
    vm.stop();
    assert!(home.run(["disk", "check", &root]).success().contains("whole:"));
}

#[test]
fn under_all_kinds_at_once_every_block_leaves_within_two_passes() {
    all_kinds(60);
}

/// `BALLAST_TEST_KINDS_SECONDS=600 cargo nextest run -p integration-tests --run-ignored only all_kinds_for_long`
#[test]
#[ignore = "takes ten minutes"]
fn all_kinds_for_long() {
    let seconds = std::env::var("BALLAST_TEST_KINDS_SECONDS");
    all_kinds(seconds.map_or(600, |seconds| seconds.parse().expect("a number of seconds")));
}
