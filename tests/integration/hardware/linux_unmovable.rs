//! A stock Debian kernel that uses hot-plugged memory itself: what cannot be moved stays, the rest goes, programs keep what
//! is theirs, and the operator is told how far it got.

use integration_tests::{
    Home, LinuxGuest, Parts, Release, eventually, needs_hardware_kvm, needs_hardware_kvm_and,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;

const BOOT: u64 = 448 * MIB;
const REGION: u64 = 512 * MIB;

/// A region whose blocks are smaller than Linux's.
const ARGUMENTS: [&str; 4] = ["--memory", "448M", "--hotplug", "512M"];

/// What is pinned, in MiB.
const PINNED: u64 = 48;

#[test]
fn memory_in_use_by_the_kernel_stays_and_the_rest_goes_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || stays(Release::V6_1));
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn memory_in_use_by_the_kernel_stays_and_the_rest_goes_on_6_12() {
    needs_hardware_kvm(|| stays(Release::V6_12));
}

fn stays(release: Release) {
    let home = Home::new();
    // Into the zone that the kernel takes its own memory from.
    let kernel = "memhp_default_state=online_kernel";
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &ARGUMENTS, kernel);
    guest.vm.wait_for_driver();
    let before = guest.mem_total_kib();

    let left = guest.case("what cannot be moved stays, under load", |guest| {
        guest.vm.resize_to(BOOT + REGION);
        guest.pin(PINNED);
        guest.start_memchecks(3, 64);
        let outcome = guest.vm.order("resize", &["448M", "--wait", "30"]);
        let left = guest.vm.stats().number("plugged_size");
        assert!(
            left >= PINNED * MIB,
            "{left} bytes are left, less than the kernel holds there"
        );
        assert!(left < REGION / 2, "little was given back: {outcome:?}");
        let (missing, moved) = (left / MIB, (REGION - left) / MIB);
        outcome.assert_refusal(
            1,
            &[
                &format!("{missing} MiB still to be given back and {moved} MiB given back"),
                "the guest gives no reason",
                "cannot be moved",
            ],
        );
        settle(guest, before);
        let stats = guest.vm.stats();
        assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
        guest.wait_for_memcheck(1);
        left
    });
    guest.case("who listens to events is told the same", |guest| {
        let events = guest.vm.order("events", &["--no-follow"]).success();
        let mut events = events
            .lines()
            .rev()
            .map(|line| serde_json::from_str(line).unwrap());
        let stall = events.find(|event: &Value| event["step"] == "stalled");
        let stall = stall.expect("a stall was told");
        assert_eq!(
            [&stall["target_bytes"], &stall["cause"]],
            [&Value::from(BOOT), &Value::from("stalled")],
            "{stall}"
        );
        let reason = stall["reason"].as_str().unwrap();
        assert!(reason.contains("still to be given back"), "{stall}");
    });
    guest.case("once it is free, more goes", |guest| {
        guest.unpin();
        guest.stop_memcheck();
        eventually("another 8 MiB being given back", || {
            // What the kernel noted about the pipes lies between their pages, and goes when it is asked to.
            guest.shell("for cache in /sys/kernel/slab/*/shrink; do echo 1 >$cache; done; echo 3 >/proc/sys/vm/drop_caches");
            let report = guest.vm.try_resize(BOOT, 2);
            (report.number("reached_bytes") - BOOT + 8 * MIB <= left).then_some(())
        });
        settle(guest, before);
    });
}

/// Waits until both sides agree on how far it got: the driver may still be at it.
fn settle(guest: &mut LinuxGuest, before_kib: u64) {
    eventually("the guest and the device agreeing", || {
        let plugged = guest.vm.stats().number("plugged_size");
        ((guest.mem_total_kib() - before_kib) * 1024 == plugged).then_some(())
    });
}
