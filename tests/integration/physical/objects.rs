//! Objects: caches, general caches, pools (rows P9 to P11).

use integration_tests::views::physical::{self, SlabCache};
use integration_tests::{Home, eventually};

use super::{Stressed, in_every_shape};

fn caches(stressed: &Stressed) -> Vec<SlabCache> {
    physical::slabinfo(&stressed.vm.guest("slabinfo"))
}

#[test]
fn the_objects_that_programs_hold_are_in_slabinfo() {
    in_every_shape("slab", 10, |stressed| {
        let caches = caches(stressed);
        for cpu in 0..stressed.shape.cpus {
            let name = format!("stress-{}", cpu + 1);
            let cache = caches.iter().find(|cache| cache.name == name);
            let cache = cache.unwrap_or_else(|| panic!("no cache {name}: {caches:#?}"));
            // Rounds of 768 operations, two of three of which take an object until 640 are held.
            assert!((400..=640).contains(&cache.active_objects), "{cache:?}");
            assert!(
                cache.object_size >= 200 && cache.objects >= cache.active_objects,
                "{cache:?}"
            );
            assert_eq!(cache.objects, cache.slabs * cache.objects_per_slab, "{cache:?}");
            assert!(
                cache.objects_per_slab * cache.object_size <= cache.pages_per_slab * 4096,
                "{cache:?}"
            );
            assert!(
                (1..=120).contains(&cache.limit) && cache.batch <= cache.limit,
                "{cache:?}"
            );
            assert!(
                cache.active_slabs > 0 && cache.active_slabs <= cache.slabs,
                "{cache:?}"
            );
        }
    });
}

#[test]
fn requests_of_every_size_come_from_the_general_cache_of_that_size() {
    in_every_shape("kmalloc", 20, |stressed| {
        let caches = caches(stressed);
        let general: Vec<&SlabCache> = caches
            .iter()
            .filter(|cache| cache.name.contains("kmalloc-"))
            .collect();
        let used = |prefix: &str| {
            general
                .iter()
                .filter(|cache| cache.name.starts_with(prefix) && cache.active_objects > 0)
                .count()
        };
        // Thirteen sizes at least, and some of those for DMA.
        assert!(
            used("kmalloc-") >= 10 && used("dma-kmalloc-") >= 5,
            "{general:#?}"
        );
        let smallest = general.iter().map(|cache| cache.object_size).min();
        let largest = general.iter().map(|cache| cache.object_size).max();
        assert_eq!((smallest, largest), (Some(32), Some(131_072)), "{general:#?}");
        // What is for DMA comes from there.
        assert!(stressed.vmstat()["pgalloc_dma"] > 0);
    });
}

#[test]
fn free_slabs_of_idle_caches_go_back_in_time() {
    let home = Home::new();
    // The first one ends and frees all it had; the second one keeps the guest alive and does nothing more.
    let programs = [
        "--program",
        "stress row=kmalloc rounds=20",
        "--program",
        "stress row=nodes rounds=1 stay",
    ];
    let vm = home.start("objects", &[&["--memory", "160M"], &programs[..]].concat());
    eventually("the end of the program", || {
        let first = vm.serial.text().contains("stress[1]: exited(0)");
        first.then_some(())
    });
    let free = || -> u64 {
        let caches = physical::slabinfo(&vm.guest("slabinfo"));
        caches
            .iter()
            .map(|cache| (cache.slabs - cache.active_slabs) * cache.pages_per_slab)
            .sum()
    };
    let before = free();
    assert!(
        before > 0,
        "nothing is left of 20 rounds, so nothing can go back in time"
    );
    eventually("half of the free slabs being given back", || {
        (free() <= before / 2).then_some(())
    });
}

#[test]
fn a_pool_lends_what_it_keeps_when_the_zone_of_its_elements_is_empty() {
    in_every_shape("mempool", 3, |stressed| {
        // The zone was emptied: requests for it found nothing, and every one of the pool's elements was lent.
        let counts = stressed.vmstat();
        assert!(counts["allocstall"] > 0, "{counts:?}");
        assert!(counts["pgalloc_dma"] > 1000, "{counts:?}");
        let caches = caches(stressed);
        let elements = caches.iter().find(|cache| cache.name == "dma-kmalloc-4k");
        let elements = elements.unwrap_or_else(|| panic!("no cache dma-kmalloc-4k: {caches:#?}"));
        // What each pool keeps is in use, whoever has it.
        assert!(
            elements.active_objects >= 12 * u64::from(stressed.shape.cpus),
            "{elements:?}"
        );
    });
}
