//! A stock Debian kernel's balloon without deflate-on-oom: what is in it is gone from the guest until the host says
//! otherwise, even if the guest runs out of memory; the host has all of it, and says how the guest is.

use integration_tests::{Home, LinuxGuest, Parts, Release, needs_hardware_kvm, needs_hardware_kvm_and};

const MIB: u64 = 1 << 20;

const BOOT: u64 = 512 * MIB;
const IN_BALLOON: u64 = 256 * MIB;

/// What the guest and the VMM use besides what is counted to the byte.
const SLACK: u64 = 16 * MIB;

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn a_balloon_takes_and_gives_and_stays_on_6_12() {
    needs_hardware_kvm(|| takes_and_gives(Release::V6_12));
}

#[test]
fn a_balloon_takes_and_gives_and_stays_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || takes_and_gives(Release::V6_1));
}

fn takes_and_gives(release: Release) {
    let home = Home::new();
    let arguments = ["--memory", "512M", "--balloon", "floor=192M,hinting"];
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &arguments, "");
    let whole = guest.mem_total_kib();
    guest.shell("load virtio_balloon");

    guest.case(
        "inflated to a target, and resident memory falls by as much",
        |guest| inflated(guest, whole),
    );
    guest.case("statistics move the right way", statistics_move);
    guest.case("never below the floor", |guest| {
        let outcome = guest.vm.order("resize", &["128M"]);
        outcome.assert_refusal(1, &["134217728", "floor", "201326592"]);
        assert_eq!(guest.vm.stats().number("balloon.target_bytes"), IN_BALLOON);
    });
    guest.case("inflated again by a driver that is bound again", |guest| {
        bound_again(guest, whole);
    });
    let oom = ["oom-killer", "Out of memory", "Call Trace"];
    guest.case_with_complaints("it stays when the guest runs out of memory", &oom, |guest| {
        let before = guest.vmstat("oom_kill");
        guest.shell("memcheck run 384 /tmp/much >/dev/null 2>&1; true");
        assert!(
            guest.vmstat("oom_kill") > before,
            "nothing was killed with more in use than there is"
        );
        let stats = guest.vm.stats();
        assert_eq!(stats.number("balloon.held_bytes"), IN_BALLOON);
        guest.mem_total_becomes(whole - IN_BALLOON / 1024);
    });
    guest.case("deflated, and all of it is the guest's again", |guest| {
        to(guest, BOOT, whole);
        guest.fill(95);
    });
    guest.case("hints give free memory to the host", hinted);
}

fn inflated(guest: &mut LinuxGuest, whole_kib: u64) {
    guest.fill(95);
    let full = resident(guest);
    to(guest, BOOT - IN_BALLOON, whole_kib);
    let now = resident(guest);
    assert!(
        now + IN_BALLOON <= full + SLACK,
        "256 MiB went into the balloon, but resident memory went from {full} to {now}"
    );
    let stats = guest.vm.stats();
    let shown = ["balloon.discarded_bytes", "balloon.shown_free_bytes"].map(|field| stats.number(field));
    assert_eq!(shown, [IN_BALLOON; 2], "what was claimed and what the host shows");
}

fn statistics_move(guest: &mut LinuxGuest) {
    let before = statistics(guest);
    assert_eq!(before[0], guest.mem_total_kib() * 1024, "total");
    // Two chunks, of which one at a time is given back and taken anew.
    guest.start_memcheck(128);
    let during = statistics(guest);
    guest.stop_memcheck();
    let after = statistics(guest);
    // Of what is free and of what is available.
    for kind in [1, 2] {
        assert!(
            during[kind] + 48 * MIB <= before[kind],
            "64 to 128 MiB taken: {before:?} {during:?}"
        );
        assert!(
            during[kind] + 48 * MIB <= after[kind],
            "64 to 128 MiB given back: {during:?} {after:?}"
        );
    }
    assert!(after[3] > before[3], "no page faults: {before:?} {after:?}");
}

fn bound_again(guest: &mut LinuxGuest, whole_kib: u64) {
    let driver = "/sys/bus/virtio/drivers/virtio_balloon";
    guest.shell(&format!(
        "cd {driver} && echo virtio* >/tmp/device && echo virtio* >unbind; cd /"
    ));
    assert_eq!(
        guest.mem_total_kib(),
        whole_kib,
        "the driver let go of everything"
    );
    assert_eq!(guest.vm.stats().number("balloon.held_bytes"), 0);
    guest.shell(&format!("cat /tmp/device >{driver}/bind"));
    guest.vm.wait_until("the balloon being full again", |stats| {
        stats.number("balloon.held_bytes") == IN_BALLOON
    });
    guest.mem_total_becomes(whole_kib - IN_BALLOON / 1024);
}

fn hinted(guest: &mut LinuxGuest) {
    let full = resident(guest);
    guest.vm.balloon(r#"{"do":"start-hinting"}"#);
    let stats = guest.vm.wait_until("a round of hinting", |stats| {
        stats.number("balloon.hinting_rounds") > 0
    });
    guest.vm.balloon(r#"{"do":"stop-hinting"}"#);
    let hinted = stats.number("balloon.hinted_bytes");
    assert!(hinted >= 256 * MIB, "only {hinted} bytes were hinted");
    let now = stats.number("host_resident_bytes");
    assert!(
        now + 256 * MIB <= full,
        "{hinted} bytes hinted, resident memory {full}, {now}"
    );
    // And the guest can use what it hinted.
    guest.fill(90);
}

/// To a total of `bytes`, all by the balloon, where both sides' accounts must agree to the byte.
fn to(guest: &mut LinuxGuest, bytes: u64, whole_kib: u64) {
    guest.vm.resize_to(bytes);
    let stats = guest.vm.stats();
    assert_eq!(stats.number("balloon.held_bytes"), BOOT - bytes);
    guest.mem_total_becomes(whole_kib - (BOOT - bytes) / 1024);
    guest.vm.wait_until("the driver saying as much", |stats| {
        stats.number("balloon.actual_bytes") == BOOT - bytes
    });
}

fn resident(guest: &LinuxGuest) -> u64 {
    guest.vm.stats().number("host_resident_bytes")
}

/// Total, free and available bytes and page faults, asked for now.
fn statistics(guest: &LinuxGuest) -> [u64; 4] {
    let report = guest.vm.balloon(r#"{"do":"statistics"}"#);
    let age = report.number("statistics.age_milliseconds");
    assert!(age < 60_000, "statistics of {age} ms ago");
    let fields = ["total_bytes", "free_bytes", "available_bytes", "minor_faults"];
    fields.map(|field| report.number(&format!("statistics.{field}")))
}
