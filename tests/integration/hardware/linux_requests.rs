//! What a stock Debian kernel and the memory device do when things are not in their usual order: nobody listens, too much
//! is asked for, and the driver goes and comes.

use integration_tests::{Home, LinuxGuest, Parts, Release, needs_hardware_kvm, needs_hardware_kvm_and};

const MIB: u64 = 1 << 20;

const BOOT: u64 = 448 * MIB;

/// A region whose blocks are smaller than Linux's.
const ARGUMENTS: [&str; 6] = [
    "--memory",
    "448M",
    "--hotplug",
    "512M,requested=128M",
    "--block-size",
    "2M",
];

const MOVABLE: &str = "memhp_default_state=online_movable";

#[test]
fn requests_before_and_without_a_driver_on_6_12() {
    needs_hardware_kvm(|| driver_comes_and_goes(Release::V6_12));
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn requests_before_and_without_a_driver_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || {
        driver_comes_and_goes(Release::V6_1);
    });
}

fn driver_comes_and_goes(release: Release) {
    let home = Home::new();
    let cmdline = format!("{MOVABLE} hold=virtio_mem");
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &ARGUMENTS, &cmdline);
    let before = guest.mem_total_kib();
    let has = |guest: &mut LinuxGuest, plugged: u64| guest.mem_total_becomes(before + plugged / 1024);

    guest.case("a request that no driver hears is reported as such", |guest| {
        let report = guest.vm.try_resize(BOOT + 256 * MIB, 1);
        assert_eq!(
            (report.text("outcome"), report.number("reached_bytes")),
            ("incomplete", BOOT),
            "{report:?}"
        );
        assert!(
            report.text("reason").contains("no virtio-mem driver"),
            "{report:?}"
        );
        has(guest, 0);
    });
    guest.case("a driver that comes takes what was requested before", |guest| {
        guest.shell("load virtio_mem");
        guest.vm.resize_to(BOOT + 256 * MIB);
        has(guest, 256 * MIB);
    });
    guest.case(
        "a size beyond the region is refused, and changes nothing",
        |guest| {
            let total = format!("{}", BOOT + 514 * MIB);
            let outcome = guest.vm.order("resize", &[&total, "--wait", "10"]);
            let limit = format!("{}", BOOT + 512 * MIB);
            outcome.assert_refusal(1, &[&total, &limit, "beyond"]);
            let stats = guest.vm.stats();
            assert_eq!(
                ["requested_size", "plugged_size"].map(|field| stats.number(field)),
                [256 * MIB; 2]
            );
            has(guest, 256 * MIB);
        },
    );
    guest.case("the whole region can be had", |guest| {
        guest.vm.resize_to(BOOT + 512 * MIB);
        has(guest, 512 * MIB);
    });
    driver_unbound_and_bound(&mut guest, before);
}

fn driver_unbound_and_bound(guest: &mut LinuxGuest, before: u64) {
    let has = |guest: &mut LinuxGuest, plugged: u64| guest.mem_total_becomes(before + plugged / 1024);
    guest.case(
        "a driver unbound and bound again with nothing plugged works",
        |guest| {
            guest.vm.resize_to(BOOT);
            unbind(guest);
            assert!(!guest.vm.stats().flag("driver_ready"));
            bind(guest);
            guest.vm.resize_to(BOOT + 128 * MIB);
            has(guest, 128 * MIB);
        },
    );
    guest.case(
        "memory stays, and stays right, when its driver is unbound",
        |guest| {
            guest.start_memcheck(128);
            unbind(guest);
            let report = guest.vm.try_resize(BOOT, 1);
            assert_eq!(
                (report.text("outcome"), report.number("reached_bytes")),
                ("incomplete", BOOT + 128 * MIB),
                "{report:?}"
            );
            assert!(
                report.text("reason").contains("no virtio-mem driver"),
                "{report:?}"
            );
            has(guest, 128 * MIB);
            guest.wait_for_memcheck(1);
        },
    );
    guest.case(
        "Linux does not bind a driver while memory of the last one is in use",
        |guest| {
            let (status, _) = guest.try_shell(&format!("cat /tmp/device >{DRIVER}/bind"));
            assert_ne!(status, "0", "bound in spite of memory in use");
            let stats = guest.vm.stats();
            assert_eq!(stats.number("plugged_size"), 128 * MIB);
            guest.wait_for_memcheck(1);
            guest.stop_memcheck();
        },
    );
}

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_mem";

fn unbind(guest: &mut LinuxGuest) {
    guest.shell(&format!(
        "cd {DRIVER} && echo virtio* >/tmp/device && echo virtio* >unbind; cd /"
    ));
}

fn bind(guest: &mut LinuxGuest) {
    guest.shell(&format!("cat /tmp/device >{DRIVER}/bind"));
    guest.vm.wait_for_driver();
}
