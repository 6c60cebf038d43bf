//! No memory, at every single request.

use super::world::{machine, put, small_machine, take};
use crate::gfp::Gfp;
use crate::slab::{CacheSpec, Debugging, NoObject};

#[test]
fn a_failure_at_any_request_leaks_nothing_and_harms_nobody() {
    // Each kind: descriptors on the slab, off the slab, several frames, debugged.
    for (size, debug) in [
        (64, Debugging::Off),
        (2048, Debugging::Off),
        (20_000, Debugging::Off),
        (600, Debugging::On),
    ] {
        for good in 0.. {
            let (slabs, cpus) = machine(2, 2, debug);
            let cache = slabs
                .create(&CacheSpec {
                    debug,
                    ..CacheSpec::new("hungry", size)
                })
                .unwrap();
            slabs.source().fail_after(good);
            let mut objects = std::vec::Vec::new();
            let mut failed = false;
            for round in 0..150 {
                match slabs.alloc(&cpus[round % 2], &cache, Gfp::KERNEL) {
                    Ok(object) => objects.push(object),
                    Err(error) => {
                        assert_eq!(error, NoObject { cache: "hungry" });
                        failed = true;
                    }
                }
            }
            slabs.validate().unwrap();
            put(&slabs, &cpus[0], &cache, &objects);
            slabs.validate().unwrap();
            slabs.destroy(&cpus[1], &cache).unwrap();
            slabs.shrink_all(&cpus[1], u64::MAX);
            assert_eq!(
                slabs.source().used_pages(),
                0,
                "{size} bytes, {good} good requests"
            );
            assert_eq!(slabs.nr_misuses(), 0);
            if !failed {
                assert!(good > 2, "nothing failed");
                break;
            }
        }
    }
}

#[test]
fn a_cache_without_memory_lives_on_its_free_objects() {
    let (slabs, cpus) = machine(2, 1, Debugging::Off);
    let cache = slabs.create(&CacheSpec::new("frugal", 1024)).unwrap();
    let objects = take(&slabs, &cpus[0], &cache, 80);
    put(&slabs, &cpus[0], &cache, &objects);
    slabs.source().fail_after(0);
    // 54 at most are at hand of the other CPU; what is on slabs is for everybody.
    let rest = take(&slabs, &cpus[1], &cache, 26);
    slabs.validate().unwrap();
    put(&slabs, &cpus[1], &cache, &rest);
}

#[test]
fn without_memory_the_free_objects_of_other_nodes_serve_too() {
    let (slabs, cpus) = machine(2, 2, Debugging::Off);
    let cache = slabs.create(&CacheSpec::new("far", 1024)).unwrap();
    let objects = take(&slabs, &cpus[0], &cache, 80);
    put(&slabs, &cpus[0], &cache, &objects);
    slabs.source().fail_after(0);
    let rest = take(&slabs, &cpus[1], &cache, 26);
    slabs.validate().unwrap();
    put(&slabs, &cpus[1], &cache, &rest);
}

#[test]
fn memory_that_comes_back_is_used_again() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("patient", 4096)).unwrap();
    let mut objects = std::vec::Vec::new();
    while let Ok(object) = slabs.alloc(&cpu, &cache, Gfp::KERNEL) {
        objects.push(object);
    }
    assert!(objects.len() > 2000, "{}", objects.len());
    slabs.validate().unwrap();
    put(&slabs, &cpu, &cache, &objects.split_off(1000));
    slabs.shrink_all(&cpu, u64::MAX);
    let again = take(&slabs, &cpu, &cache, 900);
    put(&slabs, &cpu, &cache, &again);
    put(&slabs, &cpu, &cache, &objects);
    slabs.validate().unwrap();
}
