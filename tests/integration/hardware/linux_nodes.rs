//! A stock Debian kernel sees the nodes that `--node` describes: their memory, CPUs and distances, and that what is
//! plugged arrives on the node of the hot-plug region.

use std::collections::BTreeSet;

use integration_tests::views::{self, physical};
use integration_tests::{Home, LinuxGuest, needs_hardware_kvm};

const MIB: u64 = 1 << 20;

/// 640 MiB and CPU 1 on node 0, 384 MiB and CPU 0 on node 1; the region is node 1's.
const TWO_NODES: [&str; 8] = [
    "--cpus",
    "2",
    "--node",
    "memory=640M,cpus=1,distance=10:37",
    "--node",
    "memory=384M,cpus=0",
    "--hotplug",
    "1G,node=1",
];

/// `MemTotal` of a node in KiB.
fn mem_total_kib(guest: &mut LinuxGuest, node: u32) -> u64 {
    let text = guest.shell(&format!("cat /sys/devices/system/node/node{node}/meminfo"));
    let line = text.lines().find(|line| line.contains("MemTotal:"));
    let number = line.and_then(|line| line.split_whitespace().nth(3));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no MemTotal of node {node} in:\n{text}"))
}

#[test]
fn linux_sees_two_nodes_and_memory_is_plugged_into_the_one_that_is_named() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let movable = "memhp_default_state=online_movable";
        let mut guest = LinuxGuest::boot(&home, "lin", &TWO_NODES, movable);
        let node = |file: &str| format!("cat /sys/devices/system/node/{file}");
        assert_eq!(guest.shell(&node("online")).trim(), "0-1");
        for (number, distances, cpus) in [(0, "10 37", "1"), (1, "37 10", "0")] {
            assert_eq!(
                guest.shell(&node(&format!("node{number}/distance"))).trim(),
                distances
            );
            assert_eq!(guest.shell(&node(&format!("node{number}/cpulist"))).trim(), cpus);
        }
        let before = [0, 1].map(|node| mem_total_kib(&mut guest, node));
        // Linux keeps some of each node to itself: the descriptors, and in one of them, which is left to chance
        // (KASLR), its image and the 64 MiB of its bounce buffers.
        for (total, whole) in before.into_iter().zip([640, 384]) {
            let whole = whole * MIB / 1024;
            assert!(
                total <= whole && total >= whole / 2,
                "{total} kB of {whole}: {before:?}"
            );
        }
        guest.vm.resize("1536M");
        let after = [0, 1].map(|node| mem_total_kib(&mut guest, node));
        assert_eq!(after, [before[0], before[1] + 512 * MIB / 1024]);
        let stats = guest.vm.order("stats", &[]).success();
        assert!(
            stats.contains("384 MiB + hot-plug region, CPU 0, distances 37 10"),
            "{stats}"
        );
    });
}

#[test]
fn without_nodes_linux_sees_one() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M"], "");
        assert_eq!(guest.shell("cat /sys/devices/system/node/online").trim(), "0");
        assert!(guest.shell("ls /sys/firmware/acpi/tables").contains("APIC"));
        let tables = guest.shell("ls /sys/firmware/acpi/tables");
        assert!(!tables.contains("SRAT") && !tables.contains("SLIT"), "{tables}");
    });
}

/// What the tests of the built-in guest read its texts with reads those of a stock kernel too: the formats agree.
#[test]
fn the_readers_of_the_guests_texts_read_those_of_linux() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &TWO_NODES, "");
        let mut file = |name: &str| guest.shell(&format!("cat /proc/{name}")).replace('\r', "");
        let zones = physical::zoneinfo(&file("zoneinfo"));
        let nodes: BTreeSet<u32> = zones.iter().map(|zone| zone.name.node).collect();
        assert_eq!(nodes, BTreeSet::from([0, 1]));
        let populated: Vec<_> = zones.iter().filter(|zone| zone.number("managed") > 0).collect();
        assert!(
            populated.iter().all(|zone| zone.pagesets.len() == 2),
            "{populated:#?}"
        );
        assert!(
            populated
                .iter()
                .all(|zone| zone.number("min") <= zone.number("low")),
            "{populated:#?}"
        );
        let lists = physical::buddyinfo(&file("buddyinfo"));
        assert_eq!(lists.len(), populated.len());
        let types = physical::pagetypeinfo(&file("pagetypeinfo"));
        assert_eq!(types.blocks.len(), lists.len());
        let caches = physical::slabinfo(&file("slabinfo"));
        assert!(
            caches
                .iter()
                .any(|cache| cache.name == "kmalloc-64" && cache.object_size == 64)
        );
        let areas = physical::vmallocinfo(&file("vmallocinfo"));
        assert!(areas.iter().any(|area| {
            area.number("pages")
                .is_some_and(|pages| pages * 4096 < area.bytes)
        }));
        assert!(views::vmstat(&file("vmstat")).contains_key("nr_free_pages"));
    });
}
