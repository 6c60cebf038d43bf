//! What the guest says of itself agrees with itself and with what the host knows.

use integration_tests::views::{self, Block, physical};
use integration_tests::{Home, Running, eventually};

const MIB: u64 = 1 << 20;

/// A guest of 128 + 64 MiB that runs nothing, so that its numbers stand still.
fn idle_guest(home: &Home) -> Running {
    let mut vm = home.start(
        "views",
        &["--memory", "128M", "--hotplug", "256M", "--block-size", "2M"],
    );
    vm.wait_for_driver();
    vm.resize("192M");
    vm
}

#[test]
fn meminfo_adds_up_to_the_memory_the_vm_has() {
    let home = Home::new();
    let vm = idle_guest(&home);
    let info = views::meminfo(&vm.guest("meminfo"));
    let total = info["MemTotal"] * 1024;
    assert!(total <= 192 * MIB, "more memory than the VM has: {info:?}");
    assert!(
        total >= 160 * MIB,
        "the guest keeps more than 32 MiB to itself: {info:?}"
    );
    assert!(
        info["MemFree"] <= info["MemTotal"] && info["MemFree"] > info["MemTotal"] / 2,
        "{info:?}"
    );
}

#[test]
fn meminfo_grows_by_exactly_what_is_plugged() {
    let home = Home::new();
    let vm = idle_guest(&home);
    let before = views::meminfo(&vm.guest("meminfo"))["MemTotal"];
    vm.resize("256M");
    assert_eq!(
        views::meminfo(&vm.guest("meminfo"))["MemTotal"] - before,
        64 << 10
    );
    vm.resize("128M");
    assert_eq!(
        before - views::meminfo(&vm.guest("meminfo"))["MemTotal"],
        64 << 10
    );
}

#[test]
fn buddyinfo_holds_the_free_pages_of_each_zone() {
    let home = Home::new();
    let vm = idle_guest(&home);
    let zones = physical::buddyinfo(&vm.guest("buddyinfo"));
    let pages_in = |zone: &str| -> u64 {
        let of_zone = zones.iter().filter(|(name, _)| name.zone == zone);
        of_zone.map(|(_, chunks)| physical::pages_in(chunks)).sum()
    };
    let free = views::meminfo(&vm.guest("meminfo"))["MemFree"] / 4;
    assert!(pages_in("Movable") > 0, "{zones:?}");
    let in_lists: u64 = zones.iter().map(|(_, chunks)| physical::pages_in(chunks)).sum();
    // Pages that wait in per-CPU lists are free and in no list of the buddy system.
    assert!(
        in_lists <= free && free - in_lists <= 4096,
        "{in_lists} in lists, {free} free"
    );
    assert!(
        pages_in("Movable") * 4096 <= 64 * MIB,
        "more than is plugged: {zones:?}"
    );
}

#[test]
fn blocks_are_those_the_host_has_plugged() {
    let home = Home::new();
    let vm = idle_guest(&home);
    let blocks = views::blocks(&vm.guest("blocks"));
    assert_eq!(blocks.len(), 128, "the region has 128 blocks of 2 MiB");
    let (plugged, unplugged): (Vec<&Block>, Vec<&Block>) =
        blocks.iter().partition(|block| block.state == "online");
    assert_eq!(plugged.len() as u64 * 2 * MIB, vm.stats().number("plugged_size"));
    assert!(
        unplugged.iter().all(|block| block.state == "unplugged"),
        "{unplugged:?}"
    );
    assert!(
        unplugged
            .iter()
            .all(|block| block.free_pages + block.used_pages == 0),
        "{unplugged:?}"
    );
    for (index, block) in (0..).zip(&blocks) {
        assert_eq!(block.index, index);
        assert_eq!(block.gpa, blocks[0].gpa + index * 2 * MIB);
    }
    for block in plugged {
        assert_eq!(
            (block.zone.as_str(), block.free_pages + block.used_pages),
            ("Movable", 512),
            "{block:?}"
        );
    }
}

#[test]
fn ps_shows_programs_with_their_memory_and_remembers_the_exited() {
    let home = Home::new();
    let programs = ["--program", "hog size=32M", "--program", "hog size=4M rounds=1"];
    let mut vm = home.start(
        "views",
        &[&["--memory", "128M", "--hotplug", "64M"], &programs[..]].concat(),
    );
    vm.wait_for_driver();
    let rows = eventually("the second hog having exited", || {
        let rows = vm.programs();
        (rows.len() == 2 && rows[1].state == "exited(0)" && rows[0].checks_ok > 0).then_some(rows)
    });
    assert!(rows[0].is_alive() && rows[0].name == "hog", "{rows:?}");
    assert!((32 << 10..40 << 10).contains(&rows[0].rss_kib), "{rows:?}");
    assert!(rows[0].faults > 0 && rows[1].checks_ok > 0, "{rows:?}");
}

#[test]
fn vmstat_counts_page_faults_and_blocks() {
    let home = Home::new();
    let mut vm = home.start(
        "views",
        &[
            "--memory",
            "128M",
            "--hotplug",
            "64M",
            "--program",
            "hog size=16M",
        ],
    );
    vm.wait_for_driver();
    vm.wait_for_checks(1);
    let before = views::vmstat(&vm.guest("vmstat"));
    assert!(before["pgfault"] > 0, "{before:?}");
    assert_eq!((before["blocks_plugged"], before["blocks_unplugged"]), (0, 0));
    vm.resize("192M");
    vm.resize("160M");
    // The host knows that the last block is gone before the guest has noted its answer.
    let after = eventually("the guest noting that it is there", || {
        let after = views::vmstat(&vm.guest("vmstat"));
        let sizes = (after["resize_requested_bytes"], after["resize_plugged_bytes"]);
        (sizes == (32 * MIB, 32 * MIB)).then_some(after)
    });
    assert_eq!((after["blocks_plugged"], after["blocks_unplugged"]), (32, 16));
}

#[test]
fn a_question_the_guest_does_not_know_is_refused_by_it() {
    let home = Home::new();
    let vm = idle_guest(&home);
    vm.order("guest", &["nonsense"]).assert_refusal(1, &["nonsense"]);
    // And the channel still works.
    vm.guest("meminfo");
}
