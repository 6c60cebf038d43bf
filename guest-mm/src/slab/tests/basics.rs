//! What a cache does, one claim a test.

use std::collections::BTreeSet;
use std::string::String;
use std::vec::Vec;

use super::world::{byte, machine, poke, put, small_machine, take};
use crate::Frames;
use crate::gfp::Gfp;
use crate::slab::{
    Alignment, CACHE_LINE, CacheSpec, CreateError, Debugging, GENERAL_SIZES, KMALLOC_MAX, NoObject, ObjAddr,
    slabinfo,
};

#[test]
fn objects_are_aligned_apart_and_inside_their_slabs() {
    let (slabs, cpu) = small_machine();
    for (size, align) in [
        (24, Alignment::Word),
        (40, Alignment::CacheLine),
        (700, Alignment::Bytes(256)),
        (5000, Alignment::Bytes(4096)),
    ] {
        let spec = CacheSpec {
            align,
            ..CacheSpec::new("some", size)
        };
        let cache = slabs.create(&spec).unwrap();
        let mut objects = take(&slabs, &cpu, &cache, 100);
        for object in &objects {
            assert_eq!(
                object.gpa() % u64::from(cache.layout().align),
                0,
                "{object} of {size} bytes"
            );
        }
        objects.sort_unstable();
        let apart = objects
            .windows(2)
            .all(|pair| pair[1].gpa() - pair[0].gpa() >= u64::from(size));
        assert!(apart, "objects of {size} bytes overlap");
        slabs.validate().unwrap();
        put(&slabs, &cpu, &cache, &objects);
        slabs.destroy(&cpu, &cache).unwrap();
        assert_eq!(slabs.source().used_pages(), used_by_general(&slabs), "{size}");
    }
}

/// Frames that general caches still have, for descriptors off slabs.
fn used_by_general(slabs: &super::world::TestSlabs) -> u64 {
    let mut pages = 0;
    slabs.for_each_cache(|cache| {
        pages += cache.info().slabs * u64::from(cache.layout().order.nr_pages());
    });
    pages
}

#[test]
fn a_slab_that_is_full_partial_or_free_is_on_that_list() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("thirds", 1300)).unwrap();
    cache.tune(1, 1).unwrap();
    let objects = take(&slabs, &cpu, &cache, 7);
    assert_eq!((cache.info().active_slabs, cache.info().slabs), (3, 3));
    slabs.validate().unwrap();
    // One object stays at hand; the rest is back on slabs.
    put(&slabs, &cpu, &cache, &objects);
    slabs.validate().unwrap();
    let info = cache.info();
    assert_eq!(
        (info.active_objects, info.local_objects, info.active_slabs),
        (0, 1, 1)
    );
}

#[test]
fn partial_slabs_are_filled_before_free_ones_are_touched() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("thirds", 1300)).unwrap();
    cache.tune(1, 1).unwrap();
    let mut objects = take(&slabs, &cpu, &cache, 6);
    objects.sort_unstable();
    // All of the second slab, which is free then, and two of the first; one of these stays at hand and is taken first.
    let given = [objects[3], objects[4], objects[5], objects[0], objects[1]];
    put(&slabs, &cpu, &cache, &given);
    let again = take(&slabs, &cpu, &cache, 2);
    assert_eq!(again, [objects[1], objects[0]]);
}

#[test]
fn the_last_object_freed_is_the_first_taken() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("warm", 64)).unwrap();
    let objects = take(&slabs, &cpu, &cache, 3);
    put(&slabs, &cpu, &cache, &objects);
    assert_eq!(take(&slabs, &cpu, &cache, 1), [objects[2]]);
}

#[test]
fn a_constructor_runs_once_for_each_object_and_never_again() {
    let (slabs, cpu) = small_machine();
    let spec = CacheSpec {
        constructor: Some(|frames: &dyn Frames, object: ObjAddr| {
            let (pfn, index) = (
                crate::Pfn::containing(object.gpa()).unwrap(),
                (object.gpa() % 4096 / 8) as usize,
            );
            frames.write(pfn, index, frames.read(pfn, index) + 1);
        }),
        ..CacheSpec::new("constructed", 128)
    };
    let cache = slabs.create(&spec).unwrap();
    for _ in 0..3 {
        let objects = take(&slabs, &cpu, &cache, 200);
        assert!(objects.iter().all(|&object| byte(&slabs, object, 0) == 1));
        put(&slabs, &cpu, &cache, &objects);
    }
    // Objects keep what their last owner left in them.
    let object = take(&slabs, &cpu, &cache, 1)[0];
    poke(&slabs, object, 8, &[9]);
    put(&slabs, &cpu, &cache, &[object]);
    assert_eq!(take(&slabs, &cpu, &cache, 1), [object]);
    assert_eq!((byte(&slabs, object, 0), byte(&slabs, object, 8)), (1, 9));
}

#[test]
fn colours_take_turns() {
    let (slabs, cpu) = small_machine();
    // Three objects of 1216 bytes and their descriptors leave 440 bytes: room for seven colours.
    let cache = slabs.create(&CacheSpec::new("coloured", 1216)).unwrap();
    let layout = *cache.layout();
    assert_eq!(
        (layout.nr_objects, layout.nr_colours, layout.colour_step),
        (3, 7, CACHE_LINE)
    );
    cache.tune(1, 1).unwrap();
    let offsets: Vec<u64> = (0..8)
        .map(|_| {
            take(&slabs, &cpu, &cache, 3)
                .iter()
                .map(|object| object.gpa() % 4096)
                .min()
                .unwrap()
        })
        .collect();
    let wanted: Vec<u64> = (0..8)
        .map(|slab| u64::from(layout.first + slab % 7 * CACHE_LINE))
        .collect();
    assert_eq!(offsets, wanted);
}

#[test]
fn a_cpu_keeps_at_most_its_limit_and_moves_a_batch() {
    let (slabs, cpu) = small_machine();
    for (size, limit) in [
        (64, 120),
        (256, 120),
        (257, 54),
        (1024, 54),
        (4096, 24),
        (8192, 8),
        (32_768, 8),
        (131_072, 1),
    ] {
        let cache = slabs.create(&CacheSpec::new("limited", size)).unwrap();
        assert_eq!(cache.tunables(), (limit, u32::div_ceil(limit, 2)), "{size} bytes");
        slabs.destroy(&cpu, &cache).unwrap();
    }
    let cache = slabs.create(&CacheSpec::new("limited", 64)).unwrap();
    assert_eq!(cache.tune(10, 4), Some(()));
    let objects = take(&slabs, &cpu, &cache, 1);
    assert_eq!(cache.info().local_objects, 3);
    let more = take(&slabs, &cpu, &cache, 39);
    put(&slabs, &cpu, &cache, &more[..10]);
    assert_eq!(cache.info().local_objects, 10);
    put(&slabs, &cpu, &cache, &objects);
    assert_eq!(cache.info().local_objects, 7);
    assert_eq!(
        (
            cache.tune(0, 0),
            cache.tune(121, 1),
            cache.tune(3, 4),
            cache.tune(3, 0)
        ),
        (None, None, None, None)
    );
    assert_eq!(cache.tunables(), (10, 4));
}

#[test]
fn an_object_freed_by_another_cpu_stays_with_that_cpu() {
    let (slabs, cpus) = machine(2, 1, Debugging::Off);
    let cache = slabs.create(&CacheSpec::new("shared", 100)).unwrap();
    let object = take(&slabs, &cpus[0], &cache, 1)[0];
    put(&slabs, &cpus[1], &cache, &[object]);
    assert_eq!(take(&slabs, &cpus[1], &cache, 1), [object]);
}

#[test]
fn each_cpu_takes_from_its_own_node_while_that_has_memory() {
    let (slabs, cpus) = machine(2, 2, Debugging::Off);
    let cache = slabs.create(&CacheSpec::new("local", 4096)).unwrap();
    let node = |object: &ObjAddr| crate::slab::SlabSource::node_of(slabs.source(), object.pfn().unwrap());
    for cpu in &cpus {
        let objects = take(&slabs, cpu, &cache, 500);
        assert!(objects.iter().all(|object| node(object) == cpu.id().index()));
    }
    slabs.validate().unwrap();
    // Both nodes together have 4096 frames, some of them for descriptors.
    let rest = take(&slabs, &cpus[0], &cache, 3000);
    assert!(rest.iter().any(|object| node(object) == 1));
    slabs.validate().unwrap();
}

#[test]
fn free_slabs_beyond_the_limit_go_at_once() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("counted", 1024)).unwrap();
    let objects = take(&slabs, &cpu, &cache, 1000);
    assert_eq!(cache.info().slabs, 250);
    put(&slabs, &cpu, &cache, &objects);
    let info = cache.info();
    assert!(
        info.objects - info.local_objects <= cache.free_limit() + 4,
        "{info:?}"
    );
    assert!(info.slabs < 30, "{info:?}");
    slabs.validate().unwrap();
}

#[test]
fn reaping_returns_what_idle_caches_keep_but_spares_busy_ones() {
    let (slabs, cpus) = machine(2, 1, Debugging::Off);
    let (idle, busy) = (
        slabs.create(&CacheSpec::new("idle", 512)).unwrap(),
        slabs.create(&CacheSpec::new("busy", 512)).unwrap(),
    );
    for cpu in &cpus {
        for cache in [&idle, &busy] {
            let objects = take(&slabs, cpu, cache, 120);
            put(&slabs, cpu, cache, &objects);
        }
    }
    slabs.reap(&cpus[0]);
    let before = idle.info();
    for _ in 0..30 {
        // New slabs, each round: more objects than CPUs and free slabs keep.
        let objects = take(&slabs, &cpus[1], &busy, 400);
        put(&slabs, &cpus[1], &busy, &objects);
        let local = busy.info().local_objects;
        slabs.reap(&cpus[0]);
        assert!(
            busy.info().local_objects >= local.min(54) - 11,
            "{:?}",
            busy.info()
        );
    }
    assert!(
        before.objects > 0 && idle.info().slabs == 0,
        "{before:?} {:?}",
        idle.info()
    );
    slabs.validate().unwrap();
}

#[test]
fn shrinking_gives_everything_free_back_whichever_cpu_has_it() {
    let (slabs, cpus) = machine(4, 1, Debugging::Off);
    let cache = slabs.create(&CacheSpec::new("shrunk", 64)).unwrap();
    for cpu in &cpus {
        let objects = take(&slabs, cpu, &cache, 100);
        put(&slabs, cpu, &cache, &objects);
    }
    let kept = take(&slabs, &cpus[2], &cache, 1)[0];
    let pages = cache.info().slabs;
    assert_eq!(slabs.shrink(&cpus[3], &cache), pages - 1);
    assert_eq!(cache.info().active_objects, 1);
    put(&slabs, &cpus[0], &cache, &[kept]);
    assert_eq!(slabs.shrink_all(&cpus[3], u64::MAX), 1);
    assert_eq!(slabs.source().used_pages(), 0);
}

#[test]
fn general_caches_serve_every_size_and_find_the_cache_again() {
    let (slabs, cpu) = small_machine();
    let mut objects = Vec::new();
    for size in GENERAL_SIZES {
        for size in [size - 1, size] {
            for gfp in [Gfp::KERNEL, Gfp::KERNEL.with(Gfp::DMA)] {
                let object = slabs.kmalloc(&cpu, size as usize, gfp).unwrap();
                assert!(slabs.ksize(object).unwrap() >= size);
                let align = u64::from(size.next_power_of_two()).clamp(32, 64);
                let align = if (65..=96).contains(&size) { 32 } else { align };
                let wanted = if size <= 256 {
                    align
                } else {
                    u64::from(size.next_power_of_two().min(4096))
                };
                assert_eq!(object.gpa() % wanted, 0, "{size} bytes at {object}");
                objects.push(object);
            }
        }
    }
    slabs.validate().unwrap();
    assert_eq!(objects.iter().collect::<BTreeSet<_>>().len(), objects.len());
    for object in objects {
        slabs.kfree(&cpu, object).unwrap();
    }
    slabs.validate().unwrap();
    slabs.shrink_all(&cpu, u64::MAX);
    assert_eq!(slabs.source().used_pages(), 0);
    let too_large = slabs.kmalloc(&cpu, KMALLOC_MAX + 1, Gfp::KERNEL);
    assert_eq!(too_large, Err(NoObject { cache: "kmalloc" }));
}

#[test]
fn dma_objects_have_caches_of_their_own() {
    let (slabs, cpu) = small_machine();
    let object = slabs.kmalloc(&cpu, 100, Gfp::KERNEL.with(Gfp::DMA)).unwrap();
    let used = |name: &str| {
        let mut active = 0;
        slabs.for_each_cache(|cache| {
            active += if cache.name() == name {
                cache.info().active_objects
            } else {
                0
            }
        });
        active
    };
    assert_eq!((used("dma-kmalloc-128"), used("kmalloc-128")), (1, 0));
    slabs.kfree(&cpu, object).unwrap();
}

#[test]
fn kfree_finds_any_cache() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("own", 72)).unwrap();
    let objects = take(&slabs, &cpu, &cache, 300);
    for object in objects {
        slabs.kfree(&cpu, object).unwrap();
    }
    assert_eq!(cache.info().active_objects, 0);
    slabs.validate().unwrap();
}

#[test]
fn bad_specifications_are_refused_by_name() {
    let (slabs, _) = small_machine();
    let refused = |spec: CacheSpec| slabs.create(&spec).unwrap_err();
    assert_eq!(refused(CacheSpec::new("two words", 8)), CreateError::BadName);
    assert_eq!(refused(CacheSpec::new("", 8)), CreateError::BadName);
    assert_eq!(refused(CacheSpec::new("none", 0)), CreateError::BadLayout);
    assert_eq!(refused(CacheSpec::new("large", 131_073)), CreateError::BadLayout);
    let all: Vec<_> = (0..crate::slab::MAX_CACHES)
        .map(|_| slabs.create(&CacheSpec::new("one", 8)).unwrap())
        .collect();
    assert_eq!(refused(CacheSpec::new("more", 8)), CreateError::TooMany);
    drop(all);
}

#[test]
fn slabinfo_reads_like_that_of_linux() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("task_struct", 1300)).unwrap();
    take(&slabs, &cpu, &cache, 4);
    let mut text = String::new();
    slabinfo(&mut text, &slabs).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("slabinfo - version: 2.1"));
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("# name            <active_objs> <num_objs> <objsize>")
    );
    assert_eq!(lines.clone().count(), 31);
    // 24 at hand at most; what a new slab has is enough, although a batch is 12.
    assert_eq!(
        lines.last(),
        Some(
            "task_struct            4      6   1304    3    1 : tunables   24   12    0 : slabdata      2      2      0"
        )
    );
}
