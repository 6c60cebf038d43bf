//! Random operations on several caches and CPUs against lists of what was taken.

use std::sync::Arc;
use std::vec::Vec;

use proptest::prelude::*;

use super::world::{TestSlabs, byte, machine, poke};
use crate::gfp::Gfp;
use crate::slab::{Alignment, Cache, CacheSpec, Debugging, ObjAddr};

#[derive(Clone, Debug)]
enum Op {
    Take {
        cpu: usize,
        cache: usize,
        count: usize,
    },
    Free {
        cpu: usize,
        cache: usize,
        count: usize,
        at: usize,
    },
    Kmalloc {
        cpu: usize,
        size: usize,
        dma: bool,
    },
    Kfree {
        cpu: usize,
        at: usize,
    },
    Reap {
        cpu: usize,
    },
    Shrink {
        cpu: usize,
        cache: usize,
    },
    ShrinkAll {
        cpu: usize,
        pages: u64,
    },
    Tune {
        cache: usize,
        limit: u32,
        batch: u32,
    },
    /// The next requests fail, or not any more.
    Memory {
        good: Option<u32>,
    },
    Destroy {
        cpu: usize,
        cache: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let (cpu, cache) = (0..3_usize, 0..4_usize);
    let at = any::<usize>();
    prop_oneof![
        8 => (cpu.clone(), cache.clone(), 1..80_usize).prop_map(|(cpu, cache, count)| Op::Take { cpu, cache, count }),
        8 => (cpu.clone(), cache.clone(), 1..120_usize, at).prop_map(|(cpu, cache, count, at)| Op::Free { cpu, cache, count, at }),
        6 => (cpu.clone(), 1..12_000_usize, any::<bool>()).prop_map(|(cpu, size, dma)| Op::Kmalloc { cpu, size, dma }),
        6 => (cpu.clone(), at).prop_map(|(cpu, at)| Op::Kfree { cpu, at }),
        2 => cpu.clone().prop_map(|cpu| Op::Reap { cpu }),
        1 => (cpu.clone(), cache.clone()).prop_map(|(cpu, cache)| Op::Shrink { cpu, cache }),
        1 => (cpu.clone(), 0..200_u64).prop_map(|(cpu, pages)| Op::ShrinkAll { cpu, pages }),
        1 => (cache.clone(), 1..=120_u32, 1..=120_u32).prop_map(|(cache, limit, batch)| Op::Tune { cache, limit, batch: batch.min(limit) }),
        2 => prop::option::of(0..4_u32).prop_map(|good| Op::Memory { good }),
        1 => (cpu, cache).prop_map(|(cpu, cache)| Op::Destroy { cpu, cache }),
    ]
}

fn spec(index: usize, debug: Debugging) -> CacheSpec {
    let (name, size, align) = [
        ("tiny", 12, Alignment::Word),
        ("line", 72, Alignment::CacheLine),
        ("off-slab", 1500, Alignment::Bytes(512)),
        ("spanning", 9000, Alignment::Word),
    ][index];
    CacheSpec {
        align,
        debug,
        ..CacheSpec::new(name, size)
    }
}

/// What the model knows of an object: its bytes at both ends.
struct Taken {
    object: ObjAddr,
    size: i64,
    mark: u8,
}

struct World {
    slabs: TestSlabs,
    cpus: Vec<guest_sync::Cpu>,
    debug: Debugging,
    caches: Vec<(Arc<Cache>, Vec<Taken>)>,
    general: Vec<Taken>,
    marks: u8,
}

impl World {
    fn new(debug: Debugging) -> Self {
        let (slabs, cpus) = machine(3, 2, debug);
        let caches = (0..4)
            .map(|index| (slabs.create(&spec(index, debug)).unwrap(), Vec::new()))
            .collect();
        Self {
            slabs,
            cpus,
            debug,
            caches,
            general: Vec::new(),
            marks: 0,
        }
    }

    /// Writes to both ends of a new object.
    fn mark(&mut self, object: ObjAddr, size: i64) -> Taken {
        self.marks = self.marks.wrapping_add(1);
        for at in [0, size - 1] {
            poke(&self.slabs, object, at, &[self.marks]);
        }
        Taken {
            object,
            size,
            mark: self.marks,
        }
    }

    /// Nobody else wrote to the object.
    fn check(&self, taken: &Taken) {
        for at in [0, taken.size - 1] {
            assert_eq!(
                byte(&self.slabs, taken.object, at),
                taken.mark,
                "{} changed",
                taken.object
            );
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Take { cpu, cache, count } => {
                for _ in 0..count {
                    let descriptor = self.caches[cache].0.clone();
                    let Ok(object) = self.slabs.alloc(&self.cpus[cpu], &descriptor, Gfp::KERNEL) else {
                        break;
                    };
                    let taken = self.mark(object, i64::from(descriptor.layout().object_size));
                    self.caches[cache].1.push(taken);
                }
            }
            Op::Free {
                cpu,
                cache,
                count,
                at,
            } => {
                for _ in 0..count.min(self.caches[cache].1.len()) {
                    let (descriptor, objects) = &mut self.caches[cache];
                    let taken = objects.swap_remove(at % objects.len());
                    let descriptor = descriptor.clone();
                    self.check(&taken);
                    self.slabs
                        .free(&self.cpus[cpu], &descriptor, taken.object)
                        .unwrap();
                }
            }
            Op::Kmalloc { cpu, size, dma } => {
                let gfp = if dma {
                    Gfp::KERNEL.with(Gfp::DMA)
                } else {
                    Gfp::KERNEL
                };
                if let Ok(object) = self.slabs.kmalloc(&self.cpus[cpu], size, gfp) {
                    let taken = self.mark(object, size as i64);
                    self.general.push(taken);
                }
            }
            Op::Kfree { cpu, at } => {
                if !self.general.is_empty() {
                    let taken = self.general.swap_remove(at % self.general.len());
                    self.check(&taken);
                    self.slabs.kfree(&self.cpus[cpu], taken.object).unwrap();
                }
            }
            Op::Reap { cpu } => drop(self.slabs.reap(&self.cpus[cpu])),
            Op::Shrink { cpu, cache } => drop(self.slabs.shrink(&self.cpus[cpu], &self.caches[cache].0)),
            Op::ShrinkAll { cpu, pages } => drop(self.slabs.shrink_all(&self.cpus[cpu], pages)),
            Op::Tune { cache, limit, batch } => self.caches[cache].0.tune(limit, batch).unwrap(),
            Op::Memory { good } => self.slabs.source().fail_after(good.unwrap_or(u32::MAX)),
            Op::Destroy { cpu, cache } => self.destroy(cpu, cache),
        }
    }

    fn destroy(&mut self, cpu: usize, cache: usize) {
        let (descriptor, objects) = &self.caches[cache];
        match self.slabs.destroy(&self.cpus[cpu], descriptor) {
            Ok(()) => {
                assert!(objects.is_empty());
                self.caches[cache].0 = self.slabs.create(&spec(cache, self.debug)).unwrap();
            }
            Err(leak) => {
                assert_eq!(leak.nr_objects, objects.len() as u64);
                assert!(
                    leak.objects
                        .iter()
                        .all(|named| objects.iter().any(|taken| taken.object == *named))
                );
            }
        }
    }

    fn validate(&self) {
        self.slabs.validate().unwrap();
        for (cache, objects) in &self.caches {
            assert_eq!(cache.info().active_objects, objects.len() as u64, "{cache:?}");
        }
    }

    /// Everything is freed, and every frame comes back.
    fn end(mut self) {
        for cache in 0..4 {
            let (descriptor, objects) = &mut self.caches[cache];
            let (descriptor, objects) = (descriptor.clone(), core::mem::take(objects));
            for taken in objects {
                self.check(&taken);
                self.slabs
                    .free(&self.cpus[cache % 3], &descriptor, taken.object)
                    .unwrap();
            }
            self.slabs.destroy(&self.cpus[0], &descriptor).unwrap();
        }
        for taken in core::mem::take(&mut self.general) {
            self.check(&taken);
            self.slabs.kfree(&self.cpus[1], taken.object).unwrap();
        }
        self.slabs.validate().unwrap();
        self.slabs.shrink_all(&self.cpus[2], u64::MAX);
        assert_eq!(self.slabs.source().used_pages(), 0);
        assert_eq!(self.slabs.nr_misuses(), 0, "{:?}", self.slabs.next_misuse());
    }
}

fn run(debug: Debugging, ops: &[Op]) {
    let mut world = World::new(debug);
    for op in ops {
        world.step(op);
        world.validate();
    }
    world.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_object_is_in_one_place_whatever_happens(ops in prop::collection::vec(op(), 1..60)) {
        run(Debugging::Off, &ops);
    }

    #[test]
    fn the_same_holds_for_caches_that_are_debugged(ops in prop::collection::vec(op(), 1..25)) {
        run(Debugging::On, &ops);
    }
}
