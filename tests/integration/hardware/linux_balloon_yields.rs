//! A stock Debian kernel's balloon driver: it reports free pages, and the host has them back; it yields before the guest
//! runs out of memory; the balloon and the memory device work towards one target.

use integration_tests::{
    Home, LinuxGuest, Parts, Release, eventually, needs_hardware_kvm, needs_hardware_kvm_and,
};

const MIB: u64 = 1 << 20;

const BOOT: u64 = 512 * MIB;

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn a_balloon_reports_and_yields_on_6_12() {
    needs_hardware_kvm(|| reports_and_yields(Release::V6_12));
}

#[test]
fn a_balloon_reports_and_yields_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || reports_and_yields(Release::V6_1));
}

/// With deflate-on-oom, reporting, and a memory device.
fn reports_and_yields(release: Release) {
    let home = Home::new();
    let arguments = [
        "--memory",
        "512M",
        "--hotplug",
        "256M",
        "--balloon",
        "floor=192M,reporting,deflate-on-oom",
    ];
    let movable = "memhp_default_state=online_movable";
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &arguments, movable);
    guest.shell("load virtio_balloon");
    let reported = |guest: &LinuxGuest| guest.vm.stats().number("balloon.reported_bytes");

    guest.case(
        "what the guest frees is reported, and the host has it back",
        |guest| {
            // What was free from the beginning.
            eventually("the first reports", || (reported(guest) > 0).then_some(()));
            let begun = reported(guest);
            guest.start_memcheck(320);
            let full = resident(guest);
            assert!(full >= 320 * MIB);
            guest.stop_memcheck();
            eventually("the rest being reported", || {
                (reported(guest) >= begun + 256 * MIB && resident(guest) + 256 * MIB <= full).then_some(())
            });
            guest.fill(95);
        },
    );
    guest.case("it yields when the guest would run out of memory", |guest| {
        guest.vm.resize_to(256 * MIB);
        assert_eq!(guest.vm.stats().number("balloon.held_bytes"), 256 * MIB);
        // More than is left, less than there is with the balloon empty.
        guest.start_memcheck(320);
        assert_eq!(guest.vmstat("oom_kill"), 0);
        let unasked = guest.vm.stats().number("balloon.deflated_unasked_bytes");
        assert!(unasked >= 32 * MIB, "only {unasked} bytes were taken back");
        guest.wait_for_memcheck(1);
        guest.stop_memcheck();
    });
    guest.case("balloon and blocks work towards one target", one_target);
}

fn one_target(guest: &mut LinuxGuest) {
    let whole = guest.mem_total_kib();
    guest.vm.resize_to(BOOT + 256 * MIB);
    let holds = |guest: &mut LinuxGuest, plugged: u64, held: u64| {
        let stats = guest.vm.stats();
        assert_eq!(
            ["plugged_size", "balloon.held_bytes", "guest_bytes"].map(|field| stats.number(field)),
            [plugged, held, BOOT + plugged - held]
        );
        // A balloon that yields counts as memory in use (drivers/virtio/virtio_balloon.c): MemTotal has the blocks alone.
        guest.mem_total_becomes(whole + plugged / 1024);
        let available = guest.meminfo("MemAvailable") * 1024;
        assert!(
            available <= whole * 1024 + plugged - held,
            "{available} bytes available with {held} in the balloon"
        );
    };
    holds(guest, 256 * MIB, 0);
    guest.vm.resize_to(BOOT - 128 * MIB);
    holds(guest, 0, 128 * MIB);
    guest.vm.resize_to(BOOT + 128 * MIB);
    holds(guest, 128 * MIB, 0);
    guest.fill(90);
}

fn resident(guest: &LinuxGuest) -> u64 {
    guest.vm.stats().number("host_resident_bytes")
}
