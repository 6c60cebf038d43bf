//! Frames: the buddy system, the lists of CPUs, zones, watermarks (rows P1, P3 to P7).

use std::collections::BTreeMap;

use integration_tests::views::physical::{self, PageTypes, ZoneInfo, ZoneName};
use integration_tests::{Home, eventually};

use super::{SHAPES, Stressed, in_every_shape};

/// Free chunks of each zone, all migrate types together.
fn by_zone(types: &PageTypes) -> BTreeMap<ZoneName, [u64; physical::NR_ORDERS]> {
    let mut by_zone: BTreeMap<ZoneName, [u64; physical::NR_ORDERS]> = BTreeMap::new();
    for (zone, _, chunks) in &types.free {
        let sum = by_zone.entry(zone.clone()).or_default();
        sum.iter_mut()
            .zip(chunks)
            .for_each(|(sum, chunks)| *sum += chunks);
    }
    by_zone
}

#[test]
fn chunks_of_every_order_split_and_merge_and_the_texts_agree_on_them() {
    in_every_shape("buddy", 20, |stressed| {
        let counts = stressed.vmstat();
        assert!(counts["pgalloc_dma32"] > 0 && counts["pgfree"] > 0, "{counts:?}");
        // Asked for one after the other, while the manager goes on: they agree once nothing happened in between.
        let types = eventually("buddyinfo, pagetypeinfo and zoneinfo agreeing", || {
            let types = physical::pagetypeinfo(&stressed.vm.guest("pagetypeinfo"));
            let lists = physical::buddyinfo(&stressed.vm.guest("buddyinfo"));
            let by_type = by_zone(&types);
            let of_list = |zone: &ZoneName| lists.iter().find(|(name, _)| name == zone);
            let agree = |zone: &ZoneInfo| {
                let chunks = of_list(&zone.name).map(|(_, chunks)| chunks);
                chunks.is_some()
                    && chunks == by_type.get(&zone.name)
                    && chunks.map(physical::pages_in) == Some(zone.number("free"))
            };
            stressed.zones().iter().all(agree).then_some(types)
        });
        // What the programs hold is of several kinds.
        let kinds = ["Unmovable", "Reclaimable", "Movable"];
        for kind in kinds {
            let blocks: u64 = types.blocks.iter().map(|(_, blocks)| blocks[kind]).sum();
            assert!(blocks > 0, "no pageblock is {kind}: {types:#?}");
        }
    });
}

#[test]
fn a_program_that_ends_leaves_no_frame_behind() {
    for shape in SHAPES {
        let home = Home::new();
        let mut arguments = shape.options();
        // The second one keeps the guest alive.
        for program in ["stress row=pcp rounds=1 stay", "stress row=buddy rounds=40"] {
            arguments.extend(["--program".to_owned(), program.to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let vm = home.start("stressed", &arguments);
        vm.serial.wait_for_after(0, "row buddy: 40 rounds, ");
        let ended = eventually("the second program's end", || {
            vm.programs()
                .into_iter()
                .find(|program| program.state.starts_with("exited"))
        });
        assert_eq!(
            (ended.state.as_str(), ended.checks_failed),
            ("exited(0)", 0),
            "{ended:?}"
        );
        assert!(ended.checks_ok > 10_000, "{ended:?}");
        vm.order("stop", &[]).success();
    }
}

#[test]
fn the_lists_of_cpus_serve_most_requests_for_single_frames() {
    in_every_shape("pcp", 50, |stressed| {
        let counts = stressed.vmstat();
        let (hits, refills) = (counts["pcp_hit"], counts["pcp_refill"]);
        assert!(
            hits > 1000 && hits > 10 * refills,
            "{hits} hits, {refills} refills"
        );
        // Each CPU has lists in each zone that has memory, and something in one of them.
        let zones = stressed.zones();
        for zone in &zones {
            assert_eq!(zone.pagesets.len(), stressed.shape.cpus as usize, "{zone:#?}");
        }
        for cpu in 0..stressed.shape.cpus as usize {
            let cached: u64 = zones.iter().map(|zone| zone.pagesets[cpu]["count"]).sum();
            assert!(cached > 0, "CPU {cpu} has nothing at hand");
        }
    });
}

#[test]
fn requests_stay_in_the_zones_that_they_may_use() {
    in_every_shape("zones", 20, |stressed| {
        let counts = stressed.vmstat();
        assert!(
            counts["pgalloc_dma"] > 0 && counts["pgalloc_dma32"] > 0,
            "{counts:?}"
        );
        for zone in stressed.zones() {
            let [spanned, present, managed, free] =
                ["spanned", "present", "managed", "free"].map(|name| zone.number(name));
            assert!(
                spanned >= present && present >= managed && managed >= free,
                "{zone:#?}"
            );
            let marks = ["min", "low", "high"].map(|name| zone.number(name));
            assert!(marks.is_sorted() && marks[0] > 0, "{zone:#?}");
        }
        let zones = stressed.zones();
        let dma = zones.iter().find(|zone| zone.name == ZoneName::new(0, "DMA"));
        let dma = dma.unwrap_or_else(|| panic!("no zone DMA of node 0: {zones:#?}"));
        assert!(
            dma.number("spanned") <= 4096,
            "the zone DMA ends at 16 MiB: {dma:#?}"
        );
    });
}

#[test]
fn memory_plugged_and_unplugged_changes_the_counters_of_its_zone_exactly() {
    for shape in SHAPES {
        let home = Home::new();
        let mut stressed = Stressed::after(&home, shape, "buddy", 2);
        stressed.vm.wait_for_driver();
        let region_node = shape.nodes - 1;
        let pages = |stressed: &Stressed| {
            let zones = stressed.zones();
            let movable = zones
                .iter()
                .find(|zone| zone.name == ZoneName::new(region_node, "Movable"));
            movable.map_or([0; 2], |zone| {
                ["present", "managed"].map(|name| zone.number(name))
            })
        };
        let before = pages(&stressed);
        stressed.vm.resize("192M");
        assert_eq!(
            pages(&stressed),
            before.map(|pages| pages + (32 << 8)),
            "{shape:?}"
        );
        stressed.vm.resize("160M");
        assert_eq!(pages(&stressed), before, "{shape:?}");
    }
}

#[test]
fn atomic_requests_go_below_the_minimum_where_others_stop() {
    for shape in SHAPES {
        let home = Home::new();
        let stressed = Stressed::going_on(&home, shape, "atomic");
        // Seen from outside while it happens.
        let free = eventually("the zone DMA falling below its minimum", || {
            let zones = stressed.zones();
            let dma = zones
                .into_iter()
                .find(|zone| zone.name == ZoneName::new(0, "DMA"))?;
            (dma.number("free") < dma.number("min") / 2).then(|| dma.number("free"))
        });
        let refilled = eventually("the zone DMA having memory again", || {
            let zones = stressed.zones();
            let dma = zones
                .into_iter()
                .find(|zone| zone.name == ZoneName::new(0, "DMA"))?;
            (dma.number("free") > dma.number("high")).then(|| dma.number("free"))
        });
        assert!(free < refilled);
        eventually("checks on every CPU", || {
            let programs = stressed.vm.programs();
            programs
                .iter()
                .all(|program| program.checks_ok > 1000)
                .then_some(())
        });
        stressed.assert_all_went_well();
    }
}

#[test]
fn a_request_that_may_wait_sleeps_and_is_served_by_reclaim() {
    in_every_shape("wait", 4, |stressed| {
        let counts = stressed.vmstat();
        // Each round the program sleeps until the daemon of the node has taken frames from what keeps them for that.
        let stolen = counts["pgsteal_direct"] + counts["pgsteal_kswapd"];
        assert!(stolen >= 8 * u64::from(stressed.shape.cpus), "{counts:?}");
        assert!(counts["allocstall"] > 0 && counts["pageoutrun"] > 0, "{counts:?}");
    });
}
