//! A stock Debian kernel grows and shrinks with its own virtio-mem driver: one guest, and at last it touches a block
//! that it gave back.

use integration_tests::{Home, LinuxGuest, eventually, needs_hardware_kvm};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const BOOT: u64 = 640 * MIB;
const GROWING: [&str; 4] = ["--memory", "640M", "--hotplug", "2G"];
/// Plugged memory goes to ZONE_MOVABLE, so that it can be taken away again.
const MOVABLE: &str = "memhp_default_state=online_movable";

#[test]
fn a_gib_comes_and_goes_under_programs_and_is_not_touched_when_it_is_gone() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        guest.case("one GiB more shows in MemTotal exactly, and goes again", exact);
        guest.case("it comes online as movable, and vanishes", online_as_movable);
        guest.case(
            "a program that checks its memory survives growing and shrinking",
            checked,
        );
        guest.case("a program goes on where it was held", held);
        guest.case(
            "resident memory of the VMM falls by what was unplugged",
            resident_memory_falls,
        );
        guest.case("touching a block that was given back is a violation", |guest| {
            // Without its driver, nothing in Linux claims the region, and /dev/mem reads it.
            guest.shell("rmmod virtio_mem");
        });
        guest.last_words("devmem 0x120201000");
        assert_eq!(guest.vm.wait_for_end(), 4);
        let messages = guest.vm.messages.text();
        let expected = "violation: guest access to unplugged block 257 of region 0 at gpa 0x120201000";
        assert!(messages.contains(expected), "{messages}");
    });
}

fn exact(guest: &mut LinuxGuest) {
    let before = guest.mem_total_kib();
    guest.vm.resize("1664M");
    guest.mem_total_becomes(before + GIB / 1024);
    let stats = guest.vm.stats();
    assert_eq!(
        (stats.number("plugged_size"), stats.number("requested_size")),
        (GIB, GIB)
    );
    guest.vm.resize("640M");
    guest.mem_total_becomes(before);
    let stats = guest.vm.stats();
    assert_eq!(stats.number("plugged_size"), 0);
    assert_eq!(stats.number("discarded_bytes"), GIB);
    assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
}

fn online_as_movable(guest: &mut LinuxGuest) {
    let blocks = "cat /sys/devices/system/memory/memory*/valid_zones | grep -c Movable; true";
    assert_eq!(guest.shell(blocks).trim(), "0");
    // Linux puts memory online in blocks of 128 MiB.
    guest.vm.resize_to(BOOT + 512 * MIB);
    eventually("four blocks online as movable", || {
        (guest.shell(blocks).trim() == "4").then_some(())
    });
    guest.vm.resize_to(BOOT);
    assert_eq!(guest.shell(blocks).trim(), "0");
}

fn checked(guest: &mut LinuxGuest) {
    let moved = guest.vmstat("pgmigrate_success");
    guest.start_memcheck(128);
    guest.vm.resize_to(BOOT + GIB);
    // Each round one chunk of 64 MiB is allocated anew: after two, all of it may be in the new memory.
    guest.wait_for_memcheck(2);
    let in_movable = "awk '/zone  Movable/{m=1} m&&/nr_zone_active_anon|nr_zone_inactive_anon/{n+=$2} END{print n}' /proc/zoneinfo";
    let pages: u64 = guest.shell(in_movable).trim().parse().unwrap();
    assert!(
        pages * 4096 >= 64 * MIB,
        "only {pages} pages are in plugged memory: nothing would have to move"
    );
    guest.vm.resize_to(BOOT);
    guest.wait_for_memcheck(2);
    assert!(
        guest.vmstat("pgmigrate_success") > moved,
        "the memory went away without a page being moved"
    );
    guest.stop_memcheck();
}

/// Longer than any stall that the kernel would speak of, had its clocks gone on without it.
fn held(guest: &mut LinuxGuest) {
    guest.start_memcheck(64);
    guest.vm.order("pause", &[]).success();
    let begun = guest.vm.stats();
    assert_eq!(begun.text("state"), "paused");
    let until = begun.number("uptime_seconds") + 25;
    guest.vm.wait_until("25 s having passed", |stats| {
        stats.number("uptime_seconds") >= until
    });
    guest.vm.order("resume", &[]).success();
    guest.wait_for_memcheck(2);
    guest.stop_memcheck();
}

fn resident_memory_falls(guest: &mut LinuxGuest) {
    guest.vm.resize_to(BOOT + GIB);
    let discarded = guest.vm.stats().number("discarded_bytes");
    // A file in memory of 512 MiB: more than is free in boot memory, so that plugged memory is used.
    guest.shell("mkdir /mnt && mount -t tmpfs -o size=768M tmpfs /mnt");
    guest.shell("dd if=/dev/zero of=/mnt/file bs=1M count=512 2>/dev/null");
    let full = guest.vm.stats().number("host_resident_bytes");
    assert!(
        full >= 512 * MIB,
        "only {full} bytes are resident after 512 MiB were written"
    );
    guest.shell("rm /mnt/file && umount /mnt");
    guest.vm.resize_to(BOOT);
    let stats = guest.vm.stats();
    let left = stats.number("host_resident_bytes");
    // What is left is boot memory; the part of the file that lay in plugged memory is gone.
    assert!(
        left <= BOOT,
        "{left} bytes are still resident of a guest of {BOOT}"
    );
    assert!(
        full - left >= 256 * MIB,
        "resident memory fell only from {full} to {left}"
    );
    assert_eq!(stats.number("discarded_bytes") - discarded, GIB);
}
