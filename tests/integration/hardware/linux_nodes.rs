//! A stock Debian kernel sees the nodes that `--node` describes: their memory, CPUs and distances, and what is plugged
//! arrives on the node of its hot-plug region, and leaves from there.

use std::collections::BTreeSet;

use integration_tests::views::{self, physical};
use integration_tests::{Home, LinuxGuest, Stats, eventually, needs_hardware_kvm};

const MIB: u64 = 1 << 20;

/// 640 MiB and CPU 1 on node 0, 384 MiB and CPU 0 on node 1; the first region is node 1's, the second node 0's.
const TWO_NODES: [&str; 10] = [
    "--cpus",
    "2",
    "--node",
    "memory=640M,cpus=1,distance=10:37",
    "--node",
    "memory=384M,cpus=0",
    "--hotplug",
    "512M,node=1",
    "--hotplug",
    "512M,node=0,block=64M",
];

const BOOT: u64 = 1024 * MIB;

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
fn linux_sees_two_nodes_and_two_devices_and_memory_comes_and_goes_on_the_node_of_each() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let movable = "memhp_default_state=online_movable";
        let mut guest = LinuxGuest::boot(&home, "lin", &TWO_NODES, movable);
        guest.case("nodes, CPUs and distances are those described", described);
        guest.case(
            "what reads the built-in guest's texts reads those of Linux",
            formats_agree,
        );
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
        guest.case("each device gives to its node, to the byte", |guest| {
            for plugged in [[256, 0], [256, 128], [130, 192], [512, 512]] {
                plug(guest, before, plugged);
            }
        });
        guest.case("the new memory of both nodes is used, and moves off", |guest| {
            guest.start_memcheck(128);
            guest.wait_for_memcheck(2);
            plug(guest, before, [0, 512]);
            plug(guest, before, [2, 64]);
            guest.wait_for_memcheck(1);
            guest.stop_memcheck();
        });
        guest.case("and each takes from its node", |guest| {
            plug(guest, before, [0, 64]);
            plug(guest, before, [0, 0]);
            let stats = guest.vm.stats();
            assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
        });
    });
}

/// To so many MiB in each of the regions, one after the other, where the nodes' totals must be exact.
fn plug(guest: &mut LinuxGuest, before_kib: [u64; 2], mebibytes: [u64; 2]) {
    for (region, mebibytes) in mebibytes.into_iter().enumerate() {
        let now = |region: usize, stats: &Stats| stats.number(&format!("regions.{region}.plugged_size"));
        let other = now(1 - region, &guest.vm.stats());
        let total = (BOOT + other + mebibytes * MIB).to_string();
        let which = region.to_string();
        let line = [total.as_str(), "--region", &which, "--wait", "140"];
        guest.vm.order("resize", &line).success();
        let stats = guest.vm.stats();
        assert_eq!(
            [now(region, &stats), now(1 - region, &stats)],
            [mebibytes * MIB, other]
        );
    }
    // The device is done before the guest's kernel is, which puts a block online after it was plugged.
    let expected = [
        before_kib[0] + mebibytes[1] * 1024,
        before_kib[1] + mebibytes[0] * 1024,
    ];
    eventually(&format!("MemTotal of {expected:?} kB on the nodes"), || {
        ([0, 1].map(|node| mem_total_kib(guest, node)) == expected).then_some(())
    });
}

fn described(guest: &mut LinuxGuest) {
    let node = |file: &str| format!("cat /sys/devices/system/node/{file}");
    assert_eq!(guest.shell(&node("online")).trim(), "0-1");
    for (number, distances, cpus) in [(0, "10 37", "1"), (1, "37 10", "0")] {
        assert_eq!(
            guest.shell(&node(&format!("node{number}/distance"))).trim(),
            distances
        );
        assert_eq!(guest.shell(&node(&format!("node{number}/cpulist"))).trim(), cpus);
    }
    let stats = guest.vm.order("stats", &[]).success();
    assert!(
        stats.contains("384 MiB + hot-plug region, CPU 0, distances 37 10"),
        "{stats}"
    );
}

/// What the tests of the built-in guest read its texts with reads those of a stock kernel too.
fn formats_agree(guest: &mut LinuxGuest) {
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
}
