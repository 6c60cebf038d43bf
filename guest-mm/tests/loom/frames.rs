//! Frames: freed and taken, at hand of CPUs, while blocks are isolated, go offline and come online.

use std::mem::ManuallyDrop;

use guest_mm::*;
use guest_sync::Cpu;
use loom::sync::Arc;

use crate::{cpus, explore, spawn};

/// Frames of a block: one pageblock, the least there is.
const BLOCK: u32 = 512;

/// A machine with hot-plug blocks of 2 MiB, all online in the removable zone.
struct World {
    memory: ManuallyDrop<PhysicalMemory<'static>>,
    pages: *mut [Page],
}

// SAFETY: the pointer is only used to free what it points to, when nobody else has the world.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new(nr_blocks: u32, nr_cpus: u8) -> Arc<Self> {
        let nr_pages = nr_blocks * BLOCK;
        let pages: Box<[Page]> = (0..nr_pages).map(|_| Page::default()).collect();
        let pages = Box::into_raw(pages);
        // SAFETY: from a box, and freed after the memory that refers to it is gone.
        let map = MemMap::new(Pfn::new(0), unsafe { &*pages }).expect("whole pageblocks");
        let region = PfnRange::new(Pfn::new(0), nr_pages).expect("a few MiB");
        let memory = PhysicalMemory::new(map, region, Topology::one_node(nr_cpus));
        memory
            .set_hotplug_region(NodeId::ZERO, region, BLOCK)
            .expect("whole blocks");
        for block in (0..nr_blocks).map(BlockIndex) {
            memory.begin_plug(block).expect("unplugged");
            memory.plugged(block).expect("plugging");
            memory.online(block, ZoneKind::Movable).expect("offline");
        }
        Arc::new(Self {
            memory: ManuallyDrop::new(memory),
            pages,
        })
    }

    fn alloc(&self, cpu: &Cpu) -> Option<Pfn> {
        self.memory.alloc_pages(cpu, Gfp::USER, Order::ZERO).ok()
    }

    fn free(&self, cpu: &Cpu, pfn: Pfn) {
        self.memory
            .free_pages(cpu, pfn)
            .expect("allocated, and nobody else's");
    }

    /// Everything that must hold when nothing is under way.
    fn check(&self) {
        self.memory.validate().expect("nothing is under way");
    }

    fn isolate(&self, block: u32) -> IsolatedBlock {
        self.memory
            .isolate(BlockIndex(block))
            .expect("online, and nothing pinned")
    }

    /// Frames in use that a pass over the block comes upon.
    fn in_use(&self, block: &mut IsolatedBlock) -> Vec<Pfn> {
        block.rewind();
        std::iter::from_fn(|| self.memory.next_in_use(block))
            .map(|page| page.pfn)
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
        // SAFETY: from `Box::into_raw`, and nobody refers to it any more.
        drop(unsafe { Box::from_raw(self.pages) });
    }
}

#[test]
fn a_block_goes_offline_only_after_the_frame_that_is_just_being_freed() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let pfn = world.alloc(&cpu).expect("all is free");
        let owner = spawn(&world, move |world| world.free(&cpu, pfn));
        let early = world.memory.offline(world.isolate(0));
        owner.join().unwrap();
        if let Err(busy) = early {
            assert_eq!(busy.used_pages, 1);
            world.memory.offline(busy.block).expect("the frame is free now");
        }
        assert_eq!(world.memory.frame_state(pfn), FrameState::Offline);
        world.check();
    });
}

#[test]
fn a_frame_popped_while_its_block_is_isolated_is_the_owners_or_stays_but_not_both() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let kept = world.alloc(&cpu).expect("all is free");
        world.free(&cpu, kept);
        let owner = spawn(&world, move |world| (world.alloc(&cpu), cpu));
        let mut block = world.isolate(0);
        let early = world.in_use(&mut block);
        let (taken, cpu) = owner.join().unwrap();
        assert!(
            early.is_empty() || Some(early[0]) == taken,
            "{early:?} and {taken:?}"
        );
        assert_eq!(world.in_use(&mut block), Vec::from_iter(taken));
        world.check();
        if let Some(pfn) = taken {
            world.free(&cpu, pfn);
        }
        world.memory.offline(block).expect("the frame is free now");
        world.check();
    });
}

#[test]
fn a_list_that_is_refilled_while_the_block_is_isolated_keeps_nothing_of_it() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let owner = spawn(&world, move |world| (world.alloc(&cpu), cpu));
        let block = world.isolate(0);
        let (taken, cpu) = owner.join().unwrap();
        assert_eq!(world.memory.used_pages(&block), u32::from(taken.is_some()));
        if let Some(pfn) = taken {
            world.free(&cpu, pfn);
        }
        world.memory.offline(block).expect("the frame is free now");
        world.check();
    });
}

#[test]
fn nothing_allocated_after_a_block_was_isolated_is_in_it() {
    explore(|| {
        let [cpu, other] = cpus();
        let world = World::new(2, 2);
        let isolator = spawn(&world, move |world| {
            let block = world.isolate(0);
            let inside = world.alloc(&other).map(|pfn| world.memory.block_of(pfn));
            world.memory.undo(block);
            inside
        });
        let pfn = world.alloc(&cpu);
        if let Some(pfn) = pfn {
            world.free(&cpu, pfn);
        }
        assert_eq!(isolator.join().unwrap(), Some(Some(BlockIndex(1))));
        assert!(pfn.is_some(), "one block is always open");
        world.check();
    });
}

#[test]
fn a_batch_that_goes_back_while_the_block_is_isolated_is_given_back_once() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let frames: Vec<Pfn> = std::iter::from_fn(|| world.alloc(&cpu)).take(6).collect();
        for &pfn in &frames[1..] {
            world.free(&cpu, pfn);
        }
        let last = frames[0];
        let owner = spawn(&world, move |world| world.free(&cpu, last));
        let block = world.isolate(0);
        owner.join().unwrap();
        world.check();
        world.memory.offline(block).expect("all frames are free now");
        world.check();
    });
}

#[test]
fn an_isolation_that_is_undone_loses_no_frame() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let pfn = world.alloc(&cpu).expect("all is free");
        let owner = spawn(&world, move |world| {
            world.free(&cpu, pfn);
            world.alloc(&cpu).inspect(|&pfn| world.free(&cpu, pfn));
        });
        world.memory.undo(world.isolate(0));
        owner.join().unwrap();
        world.memory.drain_all();
        let counters = world.memory.zone(NodeId::ZERO, ZoneKind::Movable).counters();
        assert_eq!((counters.free_pages, counters.cached_pages), (512, 0));
        world.check();
    });
}

#[test]
fn two_cpus_never_get_the_same_frame() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(1, 2);
        let other = spawn(&world, move |world| {
            let first = world.alloc(&two).expect("enough is free");
            world.free(&two, first);
            world.alloc(&two).expect("enough is free")
        });
        let mine = world.alloc(&one).expect("enough is free");
        let theirs = other.join().unwrap();
        assert_ne!(mine, theirs);
        world.check();
    });
}

#[test]
fn a_frame_freed_by_another_cpu_than_took_it_is_on_one_list() {
    explore(|| {
        let [one, two] = cpus();
        let world = World::new(1, 2);
        let pfn = world.alloc(&one).expect("all is free");
        let other = spawn(&world, move |world| world.free(&two, pfn));
        let drained = world.memory.drain_all();
        other.join().unwrap();
        assert_eq!(drained + world.memory.drain_all(), 1);
        world.check();
        let _ = one;
    });
}

#[test]
fn a_pageblock_taken_while_its_block_is_isolated_is_taken_whole_or_not_at_all() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        let take = |world: &World, cpu: &Cpu| {
            let gfp = Gfp::USER.with(Gfp::MEMALLOC);
            world.memory.alloc_pages(cpu, gfp, Order::PAGEBLOCK).ok()
        };
        let pfn = take(&world, &cpu).expect("all is free");
        world.free(&cpu, pfn);
        let owner = spawn(&world, move |world| (take(world, &cpu), cpu));
        let block = world.isolate(0);
        let (taken, cpu) = owner.join().unwrap();
        assert_eq!(world.memory.used_pages(&block), taken.map_or(0, |_| BLOCK));
        if let Some(pfn) = taken {
            world.free(&cpu, pfn);
        }
        world.memory.offline(block).expect("the chunk is free now");
        world.check();
    });
}

#[test]
fn a_frame_that_reaches_a_list_after_its_block_was_isolated_is_not_allocated_again() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(2, 1);
        let pfn = world.alloc(&cpu).expect("all is free");
        let home = world.memory.block_of(pfn).expect("in a block").0;
        let owner = spawn(&world, move |world| {
            world.free(&cpu, pfn);
            cpu
        });
        let block = world.isolate(home);
        let cpu = owner.join().unwrap();
        let next = world.alloc(&cpu).expect("the other block is open");
        assert_ne!(world.memory.block_of(next), Some(BlockIndex(home)));
        world.memory.offline(block).expect("the frame is free now");
        world.check();
    });
}

#[test]
fn a_frame_of_a_block_that_just_comes_online_is_like_any_other() {
    explore(|| {
        let [cpu] = cpus();
        let world = World::new(1, 1);
        world.memory.offline(world.isolate(0)).expect("all is free");
        let owner = spawn(&world, move |world| {
            if let Some(pfn) = world.alloc(&cpu) {
                assert_eq!(world.memory.block_of(pfn), Some(BlockIndex(0)));
                world.free(&cpu, pfn);
            }
        });
        world
            .memory
            .online(BlockIndex(0), ZoneKind::Movable)
            .expect("offline");
        owner.join().unwrap();
        world.memory.offline(world.isolate(0)).expect("all is free");
        world.check();
    });
}
