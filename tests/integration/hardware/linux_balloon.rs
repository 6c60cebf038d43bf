//! A stock Debian kernel and its own balloon driver: pages given and taken back, statistics, reports and hints of free
//! pages, and one target for blocks and balloon together.

use integration_tests::{Home, LinuxGuest, Stats, needs_hardware_kvm};

const MIB: u64 = 1 << 20;
const BOOT: u64 = 512 * MIB;

const LOAD: &str = "load virtio_balloon";
/// Unbinds and binds the driver; the device's name is whatever Linux gave it.
const UNBIND: &str =
    "cd /sys/bus/virtio/drivers/virtio_balloon && ls -d virtio* >/tmp/balloon && cat /tmp/balloon >unbind";
const BIND: &str = "cat /tmp/balloon >/sys/bus/virtio/drivers/virtio_balloon/bind";
/// A file in memory, which goes again.
const USE_MEMORY: &str = "mkdir -p /mnt && mount -t tmpfs -o size=400M tmpfs /mnt && dd if=/dev/zero of=/mnt/file bs=1M count=192 2>/dev/null";
const FREE_MEMORY: &str = "umount /mnt && sync && echo 3 >/proc/sys/vm/drop_caches";

/// A number of the balloon's report.
fn balloon(stats: &Stats, field: &str) -> u64 {
    stats.number(&format!("balloon.{field}"))
}

fn boot(home: &Home, balloon: &str, more: &[&str]) -> LinuxGuest {
    let arguments = ["--memory", "512M", "--balloon", balloon];
    let mut guest = LinuxGuest::boot(
        home,
        "lin",
        &[&arguments, more].concat(),
        "memhp_default_state=online_movable",
    );
    guest.shell(LOAD);
    guest
}

#[test]
fn linux_gives_pages_takes_them_back_and_says_how_it_is() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = boot(&home, "floor=128M", &[]);
        let before = guest.mem_total_kib();

        guest.case("pages go to the host and come back", |guest| {
            guest.shell(USE_MEMORY);
            guest.shell(FREE_MEMORY);
            let full = guest.vm.stats().number("host_resident_bytes");
            guest.vm.resize_to(BOOT - 240 * MIB);
            let stats = guest.vm.stats();
            assert_eq!(balloon(&stats, "held_bytes"), 240 * MIB);
            guest.mem_total_becomes(before - 240 * MIB / 1024);
            let given = full - stats.number("host_resident_bytes");
            assert!(given >= 150 * MIB, "{given} bytes less are resident");
            guest.vm.resize_to(BOOT);
            guest.mem_total_becomes(before);
            assert_eq!(balloon(&guest.vm.stats(), "held_bytes"), 0);
        });

        guest.case("the guest says how its memory is used", |guest| {
            let free = |guest: &LinuxGuest| {
                guest.vm.order("balloon", &["stats"]).success();
                let stats = guest.vm.stats();
                assert!(balloon(&stats, "statistics.age_milliseconds") < 60_000);
                balloon(&stats, "statistics.free_bytes")
            };
            let unused = free(guest);
            let total = balloon(&guest.vm.stats(), "statistics.total_bytes");
            assert_eq!(total, guest.mem_total_kib() * 1024);
            guest.shell(USE_MEMORY);
            let used = free(guest);
            // Of 192 MiB: 151 were seen to go. Pages on the lists of a CPU are not counted as free, which may be the rest.
            assert!(unused - used >= 100 * MIB, "{unused} bytes free, then {used}");
            guest.shell(FREE_MEMORY);
            guest.vm.order("balloon", &["interval", "1"]).success();
            guest.vm.wait_until("statistics by themselves", |stats| {
                balloon(stats, "statistics.free_bytes") >= used + 100 * MIB
            });
        });

        guest.case("a driver that is bound again inflates again", |guest| {
            guest.vm.resize_to(BOOT - 64 * MIB);
            guest.shell(UNBIND);
            let stats = guest.vm.stats();
            assert_eq!(balloon(&stats, "held_bytes"), 0);
            guest.mem_total_becomes(before);
            guest.shell(BIND);
            guest
                .vm
                .wait_until("the balloon", |stats| balloon(stats, "held_bytes") == 64 * MIB);
            guest.vm.resize_to(BOOT);
        });
    });
}

#[test]
fn linux_reports_and_hints_its_free_pages() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = boot(&home, "reporting,hinting,deflate-on-oom", &[]);

        guest.case("what is free is reported, and the host has it", |guest| {
            guest.shell(USE_MEMORY);
            let full = guest.vm.stats().number("host_resident_bytes");
            guest.shell(FREE_MEMORY);
            guest.vm.wait_until("reports of free pages", |stats| {
                stats.number("host_resident_bytes") + 128 * MIB <= full
            });
            assert!(balloon(&guest.vm.stats(), "reported_bytes") >= 128 * MIB);
        });

        guest.case("what is free is hinted when it is asked for", |guest| {
            guest.vm.order("balloon", &["hint"]).success();
            let stats = guest.vm.wait_until("the end of the round", |stats| {
                balloon(stats, "hinting_rounds") == 1
            });
            assert!(balloon(&stats, "hinted_bytes") >= 64 * MIB);
            assert_eq!(balloon(&stats, "hinted_stale_bytes"), 0);
        });

        guest.case(
            "memory that came back this way holds what is written to it",
            |guest| {
                guest.start_memcheck(200);
                guest.wait_for_memcheck(2);
                guest.stop_memcheck();
            },
        );
    });
}

#[test]
fn one_target_takes_blocks_first_and_pages_for_the_rest() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = boot(&home, "floor=128M", &["--hotplug", "512M"]);
        guest.vm.wait_for_driver();
        let before = guest.mem_total_kib();

        guest.case("down through the blocks into boot memory", |guest| {
            guest.vm.resize_to(BOOT + 256 * MIB);
            assert_eq!(guest.vm.stats().number("plugged_size"), 256 * MIB);
            guest.mem_total_becomes(before + 256 * 1024);
            guest.vm.resize_to(BOOT - 64 * MIB);
            // A guest that is slow for two seconds is helped by the balloon, which then gives the blocks back.
            guest.vm.wait_until("all blocks gone", |stats| {
                stats.number("plugged_size") == 0 && balloon(stats, "held_bytes") == 64 * MIB
            });
            guest.mem_total_becomes(before - 64 * 1024);
        });

        guest.case("up again, without the balloon", |guest| {
            guest.vm.resize_to(BOOT + 128 * MIB);
            let stats = guest.vm.stats();
            assert_eq!(stats.number("plugged_size"), 128 * MIB);
            assert_eq!(balloon(&stats, "held_bytes"), 0);
            guest.mem_total_becomes(before + 128 * 1024);
        });
    });
}
