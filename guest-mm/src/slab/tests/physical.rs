//! Slabs out of the real page allocator.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::gfp::Gfp;
use crate::host::HostFrames;
use crate::page::PageFlags;
use crate::slab::{CacheSpec, Debugging, GENERAL_SIZES, ObjAddr, SlabAllocator, SlabSource};
use crate::tests::phys_model::{descriptors, one_cpu, range, small_memory};
use crate::{FrameState, Order, Pfn, PhysicalMemory};

/// Runs a test with the allocator over 8 MiB of boot memory.
fn with_slabs(test: impl FnOnce(&SlabAllocator<HostFrames, &PhysicalMemory<'_>>, &Cpu)) {
    let pages = descriptors(512);
    let memory = small_memory(&pages, 512, 1);
    let mut frames = HostFrames::new();
    frames.plug(range(0, 2048));
    let slabs = SlabAllocator::new(frames, &memory, Debugging::Off);
    test(&slabs, &one_cpu());
    slabs.validate().unwrap();
    memory.validate().unwrap();
}

#[test]
fn every_frame_of_a_slab_leads_to_it_and_only_those_of_slabs_do() {
    with_slabs(|slabs, cpu| {
        let cache = slabs.create(&CacheSpec::new("large", 20_000)).unwrap();
        let object = slabs.alloc(cpu, &cache, Gfp::KERNEL).unwrap();
        let phys = *slabs.source();
        let slab = phys.slab_of(object.pfn().unwrap()).unwrap();
        let order = cache.layout().order;
        assert!(order > Order::ZERO && phys.frame_state(slab) == FrameState::Allocated(order));
        assert_eq!(PhysicalMemory::page(phys, slab).unwrap().flags(), PageFlags::SLAB);
        for page in 0..order.nr_pages() {
            assert_eq!(phys.slab_of(slab + page), Some(slab), "frame {page}");
        }
        assert_ne!(phys.slab_of(slab + order.nr_pages()), Some(slab));
        let others = phys
            .alloc_pages(cpu, Gfp::KERNEL, Order::new(2).unwrap())
            .unwrap();
        for foreign in [
            others,
            others + 1,
            others + 3,
            Pfn::new(0),
            Pfn::new(2047),
            Pfn::new(1 << 30),
        ] {
            assert_eq!(phys.slab_of(foreign), None, "{foreign}");
            assert!(slabs.kfree(cpu, ObjAddr::new(foreign.gpa())).is_err());
        }
        // The page allocator knows that they are not just anybody's.
        assert!(phys.free_pages(cpu, slab).is_err());
        slabs.free(cpu, &cache, object).unwrap();
    });
}

#[test]
fn all_memory_can_be_slabs_and_comes_back() {
    with_slabs(|slabs, cpu| {
        let phys = *slabs.source();
        let before = phys.memory_stats().free_pages;
        let mut objects = Vec::new();
        for size in GENERAL_SIZES.into_iter().rev().cycle().take(3000) {
            objects.extend(slabs.kmalloc(cpu, size as usize, Gfp::KERNEL));
        }
        assert!(slabs.kmalloc(cpu, 131_072, Gfp::KERNEL).is_err());
        slabs.validate().unwrap();
        phys.validate().unwrap();
        objects
            .into_iter()
            .for_each(|object| slabs.kfree(cpu, object).unwrap());
        assert!(slabs.shrink_all(cpu, u64::MAX) > 0);
        assert_eq!(phys.memory_stats().free_pages, before);
    });
}
