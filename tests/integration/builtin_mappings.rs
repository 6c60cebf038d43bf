//! The guest's manager and memory that it has not mapped: programs live in it, windows lend it addresses, and areas are
//! made of it.

use integration_tests::views::physical::{self, ZoneName, pages_in};
use integration_tests::views::{self, Numbers};
use integration_tests::{Home, Running, eventually};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn vmstat(vm: &Running) -> Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

/// Bytes that the manager's page tables map at their physical addresses.
fn direct_map(vm: &Running) -> u64 {
    let meminfo = views::meminfo(&vm.guest("meminfo"));
    (meminfo["DirectMap4k"] + meminfo["DirectMap2M"]) * 1024
}

/// Free bytes of a zone of node 0.
fn free_in(vm: &Running, zone: &str) -> u64 {
    let zones = physical::buddyinfo(&vm.guest("buddyinfo"));
    let of_zone = zones.iter().filter(|(name, _)| *name == ZoneName::new(0, zone));
    of_zone.map(|(_, chunks)| pages_in(chunks) * PAGE).sum()
}

/// 256 MiB of which the manager maps 64, and room for 128 more.
fn start(home: &Home, words: &str, more: &[&str]) -> Running {
    let cmdline = format!("highmem=64M {words}");
    let arguments = ["--memory", "256M", "--hotplug", "128M", "--cmdline", &cmdline];
    home.start("high", &[&arguments, more].concat())
}

/// The same, when it answers.
fn started(home: &Home, words: &str, more: &[&str]) -> Running {
    let mut vm = start(home, words, more);
    vm.wait_for_driver();
    vm
}

#[test]
fn the_manager_s_heap_can_be_below_the_manager() {
    let home = Home::new();
    // All it can use is the zone DMA, which has frames below the image, and those are taken first.
    let cmdline = ["--cmdline", "highmem=16M"];
    let program = ["--program", "hog size=16M"];
    let arguments = [&["--memory", "64M", "--hotplug", "128M"], &cmdline[..], &program].concat();
    let mut vm = home.start("low", &arguments);
    vm.wait_for_driver();
    for size in ["128M", "64M", "192M", "64M"] {
        vm.resize(size);
        assert!(vm.guest("slabinfo").contains("kmalloc-512"));
    }
    vm.wait_for_checks(2);
}

#[test]
fn programs_live_in_memory_that_the_manager_has_not_mapped() {
    let home = Home::new();
    let programs = [
        "--cpus",
        "2",
        "--program",
        "hog size=80M pages=mixed seed=1",
        "--program",
        "hog size=80M pages=small seed=2",
    ];
    let mut vm = started(&home, "", &programs);
    eventually("the programs holding their memory", || {
        let held: u64 = vm.programs().iter().map(|program| program.rss_kib).sum();
        (held >= 160 * 1024).then_some(())
    });
    vm.wait_for_checks(20);
    let mapped = direct_map(&vm);
    assert!(
        (60 * MIB..=64 * MIB).contains(&mapped),
        "{mapped} bytes are mapped"
    );
    // What is not mapped is 192 MiB. Most of the programs' memory is there, as the rest has less than 64.
    let free = free_in(&vm, "HighMem");
    assert!(free <= 96 * MIB, "{free} bytes of high memory are free");
    let counts = vmstat(&vm);
    assert!(counts["kmap_atomic_maps"] > 0, "{counts:?}");
}

#[test]
fn the_manager_faults_where_it_has_not_mapped_memory() {
    let home = Home::new();
    let mut vm = start(&home, "panic_test=highmem", &[]);
    assert_eq!(vm.wait_for_end(), 3);
    let messages = vm.messages.text();
    assert!(
        messages.contains("guest panicked: access to 0x4000000,"),
        "{messages}"
    );
}

#[test]
fn blocks_are_mapped_while_they_are_plugged_and_their_pages_move_to_high_memory() {
    let home = Home::new();
    let mut vm = started(&home, "validate", &["--program", "hog size=150M pages=mixed"]);
    let before = direct_map(&vm);
    vm.resize("384M");
    assert_eq!(direct_map(&vm) - before, 128 * MIB);
    vm.wait_for_checks(5);
    vm.resize("256M");
    vm.wait_for_checks(5);
    assert_eq!(direct_map(&vm), before);
    assert_eq!(vm.stats().number("violations"), 0);
}

#[test]
fn more_tasks_than_slots_map_high_memory_in_turn_and_find_their_data() {
    let home = Home::new();
    let more = ["--cpus", "2", "--program", "hog size=100M pages=mixed"];
    let mut vm = started(&home, "kmap_slots=16 load=kmap", &more);
    let counts = eventually("frames mapped in turn", || {
        let counts = vmstat(&vm);
        assert_eq!(counts["load_kmap_pages_wrong"], 0, "{counts:?}");
        assert!(counts["nr_kmap"] <= 16, "{counts:?}");
        (counts["load_kmap_steps"] >= 300).then_some(counts)
    });
    assert_eq!(counts["load_kmap_no_memory"], 0, "{counts:?}");
    // 24 tasks and 16 slots; a slot is used again only after a flush.
    assert!(counts["kmap_waits"] > 0 && counts["kmap_wraps"] > 0, "{counts:?}");
    assert!(counts["kmap_flushes"] <= counts["kmap_maps"], "{counts:?}");
    // A temporary mapping does not take a flush of its own.
    assert!(
        counts["kmap_atomic_flushes"] * 4 <= counts["kmap_atomic_maps"],
        "{counts:?}"
    );
    vm.wait_for_checks(5);
}

#[test]
fn areas_come_and_go_on_every_cpu_with_few_flushes_and_find_their_data() {
    let home = Home::new();
    let more = ["--cpus", "2", "--program", "hog size=100M pages=small"];
    let mut vm = started(&home, "load=vmalloc", &more);
    vm.wait_for_answers();
    let counts = eventually("areas coming and going", || {
        let counts = vmstat(&vm);
        assert_eq!(counts["load_vmalloc_pages_wrong"], 0, "{counts:?}");
        (counts["load_vmalloc_steps"] >= 400 && counts["vmalloc_purged"] > 0).then_some(counts)
    });
    assert_eq!(counts["load_vmalloc_no_memory"], 0, "{counts:?}");
    // Every area that was purged, and every one that was mapped of single frames, took one flush at most.
    assert!(
        counts["vmalloc_flushes"] <= counts["load_vmalloc_steps"],
        "{counts:?}"
    );
    let areas = physical::vmallocinfo(&vm.guest("vmallocinfo"));
    assert!(areas.len() > 2, "{areas:?}");
    for area in &areas {
        assert_eq!(area.range.1 - area.range.0, area.bytes, "{area:?}");
        if let Some(pages) = area.number("pages") {
            // The last page of every area stays unmapped.
            assert_eq!(area.bytes, (pages + 1) * PAGE, "{area:?}");
            let is_whole = area.number("N0") == Some(pages);
            assert!(
                is_whole || area.words.iter().any(|word| word == "vmap"),
                "{area:?}"
            );
        }
    }
    assert!(
        areas.windows(2).all(|pair| pair[0].range.1 <= pair[1].range.0),
        "{areas:?}"
    );
    vm.wait_for_checks(5);
}
