//! Slabs: objects freed by another CPU than took them, and at hand of CPUs, while caches are shrunk.

use std::sync;

use guest_mm::host::HostFrames;
use guest_mm::slab::{Cache, CacheSpec, Debugging, ObjAddr, SlabAllocator, SlabSource};
use guest_mm::{Gfp, Order, Page, Pfn, PfnRange};
use guest_sync::atomic::{AtomicBool, Ordering};
use guest_sync::{Cpu, SpinLock};
use loom::sync::Arc;

use crate::{cpus, explore, spawn};

/// Frames that slabs can have.
const FRAMES: u32 = 8;

/// Frames with a slab descriptor each, of which a slab may have any.
struct Source {
    nr_cpus: u8,
    taken: SpinLock<[bool; FRAMES as usize]>,
    descriptors: Vec<Descriptor>,
}

/// What is known of a frame; `is_slab` as long as it is one.
#[derive(Default)]
struct Descriptor {
    is_slab: AtomicBool,
    page: Page,
}

impl Source {
    fn at(&self, pfn: Pfn) -> &Descriptor {
        &self.descriptors[pfn.number() as usize]
    }

    fn nr_taken(&self) -> usize {
        self.taken.lock().iter().filter(|&&taken| taken).count()
    }
}

impl SlabSource for Source {
    fn nr_cpus(&self) -> u8 {
        self.nr_cpus
    }

    fn nr_nodes(&self) -> usize {
        1
    }

    fn node_of_cpu(&self, _: &Cpu) -> usize {
        0
    }

    fn node_of(&self, _: Pfn) -> usize {
        0
    }

    fn take(&self, _: &Cpu, _: Gfp, order: Order) -> Option<Pfn> {
        assert_eq!(order, Order::ZERO, "the caches of the models have small slabs");
        let mut taken = self.taken.lock();
        let index = taken.iter().position(|&taken| !taken)?;
        taken[index] = true;
        let pfn = Pfn::new(u32::try_from(index).expect("a few"));
        self.at(pfn).is_slab.store(true, Ordering::Relaxed);
        Some(pfn)
    }

    fn put(&self, _: &Cpu, slab: Pfn, _: Order) {
        let mut taken = self.taken.lock();
        assert!(
            std::mem::take(&mut taken[slab.number() as usize]),
            "{slab} was given back before"
        );
        self.at(slab).is_slab.store(false, Ordering::Relaxed);
    }

    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        let descriptor = self.descriptors.get(pfn.number() as usize)?;
        descriptor.is_slab.load(Ordering::Relaxed).then_some(pfn)
    }

    fn page(&self, slab: Pfn) -> &Page {
        let Descriptor { is_slab, page } = self.at(slab);
        assert!(is_slab.load(Ordering::Relaxed), "{slab} is no slab any more");
        page
    }
}

/// An allocator with one cache, three objects a slab, of which CPUs keep two at hand and move one at a time.
struct World {
    slabs: SlabAllocator<HostFrames, Source>,
    cache: sync::Arc<Cache>,
}

impl World {
    fn new(nr_cpus: u8) -> Arc<Self> {
        let mut frames = HostFrames::new();
        frames.plug(PfnRange::new(Pfn::new(0), 512).expect("2 MiB"));
        let source = Source {
            nr_cpus,
            taken: SpinLock::new([false; FRAMES as usize]),
            descriptors: (0..FRAMES).map(|_| Descriptor::default()).collect(),
        };
        let slabs = SlabAllocator::new(frames, source, Debugging::Off);
        let cache = slabs
            .create(&CacheSpec::new("model", 1300))
            .expect("a small object");
        assert_eq!(cache.layout().nr_objects, 3);
        cache.tune(2, 1).expect("1 to 120");
        Arc::new(Self { slabs, cache })
    }

    fn alloc(&self, cpu: &Cpu) -> ObjAddr {
        let object = self.slabs.alloc(cpu, &self.cache, Gfp::KERNEL);
        object.expect("there are frames for all objects of the models")
    }

    fn free(&self, cpu: &Cpu, object: ObjAddr) {
        self.slabs
            .free(cpu, &self.cache, object)
            .expect("taken, of this cache");
    }

    fn shrink(&self, cpu: &Cpu) {
        self.slabs.shrink(cpu, &self.cache);
    }

    /// Everything that must hold when nothing is under way, with that many slabs left.
    fn check(&self, nr_slabs: usize) {
        assert_eq!(self.slabs.next_misuse(), None);
        self.slabs.validate().expect("nothing is under way");
        assert_eq!(self.slabs.source().nr_taken(), nr_slabs);
    }
}

#[test]
fn an_object_freed_by_another_cpu_while_its_cache_is_shrunk_is_kept_or_given_back_once() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(2);
        let object = world.alloc(&one);
        let other = spawn(&world, move |world| world.free(&two, object));
        world.shrink(&one);
        other.join().unwrap();
        world.slabs.validate().expect("nothing is under way");
        world.shrink(&one);
        world.check(0);
    });
}

#[test]
fn an_object_taken_while_its_cache_is_shrunk_lies_in_a_slab_that_stays() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(2);
        let object = world.alloc(&two);
        world.free(&two, object);
        let other = spawn(&world, move |world| (world.alloc(&two), two));
        world.shrink(&one);
        let (object, two) = other.join().unwrap();
        world.check(1);
        world.free(&two, object);
        world.shrink(&one);
        world.check(0);
    });
}

#[test]
fn two_cpus_never_get_the_same_object() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(2);
        let other = spawn(&world, move |world| {
            let first = world.alloc(&two);
            world.free(&two, first);
            world.alloc(&two)
        });
        let mine = world.alloc(&one);
        let theirs = other.join().unwrap();
        assert_ne!(mine, theirs);
        world.slabs.validate().expect("nothing is under way");
    });
}

#[test]
fn objects_that_go_back_to_their_slab_while_others_are_freed_there_are_all_counted() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(2);
        let objects = [world.alloc(&one), world.alloc(&one), world.alloc(&one)];
        // What CPU 1 has at hand is at its limit: one more, and one goes back.
        world.free(&two, objects[0]);
        world.free(&two, objects[1]);
        let other = spawn(&world, move |world| {
            let third = world.alloc(&two);
            world.free(&two, third);
            world.free(&two, objects[2]);
        });
        world.slabs.reap(&one);
        other.join().unwrap();
        world.shrink(&one);
        world.check(0);
    });
}

#[test]
fn two_cpus_that_shrink_at_once_give_each_slab_back_once() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(2);
        let objects = [world.alloc(&one), world.alloc(&one)];
        for object in objects {
            world.free(&one, object);
        }
        let other = spawn(&world, move |world| world.shrink(&two));
        world.shrink(&one);
        other.join().unwrap();
        world.check(0);
    });
}
