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

#[test]
fn each_error_that_is_planted_in_the_guest_is_on_its_console_with_place_and_bytes() {
    let home = Home::new();
    let vm = home.start("planted", &["--memory", "64M", "--cmdline", "slab_debug=test"]);
    for kind in [
        "written beyond its end: 1 bytes at offset 40: expected cc, found ee; last taken at ",
        "written in front of it: 1 bytes at offset -1: expected cc, found ee; last taken at ",
        "written after it was freed: 1 bytes at offset 7: expected 6b, found ee; last taken at ",
        "freed twice; before at ",
        "freed here, belongs to cache slab-test",
        "was freed, but no object starts there",
        "0x1000 was freed, but lies in no slab",
        "cache slab-test: 1 objects still in use: 0x",
    ] {
        eventually(kind, || {
            let text = vm.serial.text();
            text.lines()
                .any(|line| line.contains("slab: cache slab-test") && line.contains(kind))
                .then_some(())
        });
    }
}

#[test]
fn the_manager_uses_its_heap_without_an_error_that_debugging_finds() {
    let home = Home::new();
    let programs = [
        "--program",
        "hog fill=30% pages=mixed seed=5",
        "--program",
        "stress row=kmalloc",
    ];
    let options = [
        "--memory",
        "128M",
        "--hotplug",
        "128M",
        "--cpus",
        "2",
        "--cmdline",
        "slab_debug validate",
    ];
    let mut vm = home.start("debugged", &[&options[..], &programs[..]].concat());
    vm.wait_for_driver();
    for total in ["256M", "128M"] {
        vm.resize(total);
        vm.wait_for_checks(10);
    }
    let caches = physical::slabinfo(&vm.guest("slabinfo"));
    let smallest = caches.iter().find(|cache| cache.name == "kmalloc-32");
    // Red zones, and words for the last users.
    assert!(
        smallest.is_some_and(|cache| cache.object_size >= 64),
        "{caches:#?}"
    );
    let serial = vm.serial.text();
    assert!(!serial.contains("slab: "), "{serial}");
}
