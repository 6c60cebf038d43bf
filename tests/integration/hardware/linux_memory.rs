//! A stock Debian kernel grows and shrinks with its own virtio-mem driver.

use integration_tests::{Home, LinuxGuest, needs_hardware_kvm};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const GROWING: [&str; 4] = ["--memory", "640M", "--hotplug", "2G"];
/// Plugged memory goes to ZONE_MOVABLE, so that it can be taken away again.
const MOVABLE: &str = "memhp_default_state=online_movable";

#[test]
fn one_gib_more_shows_in_memtotal_exactly_and_goes_away_again() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        let before = guest.mem_total_kib();

        guest.vm.resize("1664M");
        assert_eq!(guest.mem_total_kib() - before, GIB / 1024);
        let stats = guest.vm.stats();
        assert_eq!(
            (stats.number("plugged_size"), stats.number("requested_size")),
            (GIB, GIB)
        );

        guest.vm.resize("640M");
        assert_eq!(guest.mem_total_kib(), before);
        let stats = guest.vm.stats();
        assert_eq!(stats.number("plugged_size"), 0);
        assert_eq!((stats.number("violations"), stats.number("guest_faults")), (0, 0));
        assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
    });
}

#[test]
fn memory_blocks_come_online_as_movable_and_vanish_when_unplugged() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        let blocks = "cat /sys/devices/system/memory/memory*/valid_zones | grep -c Movable; true";
        assert_eq!(guest.shell(blocks).trim(), "0");
        // Linux puts memory online in blocks of 128 MiB.
        guest.vm.resize("1152M");
        assert_eq!(guest.shell(blocks).trim(), "4");
        guest.vm.resize("640M");
        assert_eq!(guest.shell(blocks).trim(), "0");
    });
}

#[test]
fn a_program_that_checks_its_memory_survives_growing_and_shrinking() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        guest.start_memcheck(128);
        guest.vm.resize("1664M");
        // Each round one chunk of 64 MiB is allocated anew: after two, all of it may be in the new memory.
        guest.wait_for_memcheck(2);
        let in_movable = "awk '/zone  Movable/{m=1} m&&/nr_zone_active_anon|nr_zone_inactive_anon/{n+=$2} END{print n}' /proc/zoneinfo";
        let pages: u64 = guest.shell(in_movable).trim().parse().unwrap();
        assert!(
            pages * 4096 >= 64 * MIB,
            "only {pages} pages are in plugged memory: nothing would have to move"
        );
        guest.vm.resize("640M");
        guest.wait_for_memcheck(2);
        let moved = guest.shell("grep pgmigrate_success /proc/vmstat");
        let moved: u64 = moved.trim().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(moved > 0, "the memory went away without a page being moved");
    });
}

#[test]
fn resident_memory_of_the_vmm_falls_by_what_was_unplugged() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        guest.vm.resize("1664M");
        // A file in memory of 512 MiB: more than is free in boot memory, so that plugged memory is used.
        guest.shell("mkdir /mnt && mount -t tmpfs -o size=768M tmpfs /mnt");
        guest.shell("dd if=/dev/zero of=/mnt/file bs=1M count=512 2>/dev/null");
        let full = guest.vm.stats().number("host_resident_bytes");
        assert!(
            full >= 512 * MIB,
            "only {full} bytes are resident after 512 MiB were written"
        );
        guest.shell("rm /mnt/file");
        guest.vm.resize("640M");
        let stats = guest.vm.stats();
        let left = stats.number("host_resident_bytes");
        // What is left is boot memory; the part of the file that lay in plugged memory is gone.
        assert!(
            left <= 640 * MIB,
            "{left} bytes are still resident of a guest of 640 MiB"
        );
        assert!(
            full - left >= 256 * MIB,
            "resident memory fell only from {full} to {left}"
        );
        assert_eq!(stats.number("discarded_bytes"), GIB);
    });
}

#[test]
fn linux_touching_a_block_that_it_gave_back_is_a_violation() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &GROWING, MOVABLE);
        guest.vm.resize("1664M");
        guest.vm.resize("640M");
        // Without its driver, nothing in Linux claims the region, and /dev/mem reads it.
        guest.shell("rmmod virtio_mem");
        guest.last_words("devmem 0x120201000");
        assert_eq!(guest.vm.wait_for_end(), 4);
        let messages = guest.vm.messages.text();
        let expected = "violation: guest access to unplugged block 257 of region 0 at gpa 0x120201000";
        assert!(messages.contains(expected), "{messages}");
    });
}
