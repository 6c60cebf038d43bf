//! The manager's own mappings: areas of single frames, and windows to high memory (rows P8 and P12).

use integration_tests::Home;
use integration_tests::views::physical::{self, ZoneName};

use super::{SHAPES, Stressed, in_every_shape};

#[test]
fn areas_come_where_no_two_free_frames_are_neighbours_and_are_in_vmallocinfo() {
    // One of each round's checks is an area of 128 pages while the largest free chunk is a single frame.
    in_every_shape("vmalloc", 3, |stressed| {
        let areas = physical::vmallocinfo(&stressed.vm.guest("vmallocinfo"));
        let held = areas
            .iter()
            .filter(|area| area.words.first().is_some_and(|who| who == "stress"));
        let held: Vec<_> = held.collect();
        assert!(
            !held.is_empty() && held.len() <= 24 * stressed.shape.cpus as usize,
            "{areas:#?}"
        );
        for area in &held {
            let pages = area.number("pages").unwrap();
            // With its guard page.
            assert_eq!(
                (area.bytes, area.range.1 - area.range.0),
                ((pages + 1) * 4096, area.bytes),
                "{area:?}"
            );
            let on_nodes: u64 = (0..2).filter_map(|node| area.number(&format!("N{node}"))).sum();
            assert_eq!(on_nodes, pages, "{area:?}");
        }
        assert!(
            areas.windows(2).all(|pair| pair[0].range.1 <= pair[1].range.0),
            "areas overlap: {areas:#?}"
        );
        let counts = stressed.vmstat();
        let all: u64 = areas.iter().filter_map(|area| area.number("pages")).sum();
        assert!(
            counts["nr_vmalloc"] <= all && counts["vmalloc_purged"] > 128,
            "{all} pages, {counts:?}"
        );
    });
}

#[test]
fn part_of_memory_can_be_outside_the_direct_map_and_is_seen_through_windows() {
    for shape in SHAPES {
        let home = Home::new();
        let stressed = Stressed::with(&home, shape, ("kmap", 2), &["--cmdline", "highmem=64M"]);
        let zones = stressed.zones();
        let high: u64 = zones
            .iter()
            .filter(|zone| zone.name.zone == "HighMem")
            .map(|zone| zone.number("present"))
            .sum();
        assert_eq!(high, (160 - 64) << 8, "{zones:#?}");
        assert!(zones.iter().all(|zone| zone.name != ZoneName::new(0, "Normal")));
        let counts = stressed.vmstat();
        assert!(counts["pgalloc_high"] > 1000, "{counts:?}");
        // The window has 1024 slots, and every one was in use at a time: more mappings than that, and flushes.
        assert!(
            counts["kmap_maps"] > 2000 && counts["kmap_flushes"] > 0,
            "{counts:?}"
        );
        assert!(
            counts["kmap_atomic_maps"] > 1000 && counts["nr_kmap"] == 0,
            "{counts:?}"
        );
    }
}

#[test]
fn every_row_passes_with_high_memory_too() {
    for row in ["buddy", "zones", "slab", "vmalloc", "nodes"] {
        let home = Home::new();
        Stressed::with(&home, SHAPES[3], (row, 2), &["--cmdline", "highmem=64M"]);
    }
}
