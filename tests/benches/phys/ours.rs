//! guest-mm behind the suite's traits: the interface that the guest's kernel uses, several CPUs at a time.
//!
//! All memory is hot-plug blocks of 128 MiB in the removable zone, and requests are those of programs.

use std::ptr::{NonNull, without_provenance_mut};
use std::sync::Arc;

use guest_mm::host::HostFrames;
use guest_mm::slab::{Cache, CacheSpec, Debugging, ObjAddr, SlabAllocator};
use guest_mm::{
    BlockIndex, BootRegion, Gfp, MemMap, NodeId, Order, Page, Pfn, PfnRange, PhysicalMemory, Topology,
    ZoneKind,
};
use guest_sync::{Cpu, CpuId, CpuSet};

use crate::frames::{FrameAllocator, Hand};
use crate::objects::{ObjectAllocator, Objects};
use crate::offline::BLOCK_FRAMES;
use crate::rows::OURS;

/// First frame of the hot-plug region: at 4 GiB.
const BASE: u32 = 1 << 20;

pub(crate) struct GuestMm;

/// A CPU of a machine.
pub(crate) struct CpuHand {
    memory: &'static PhysicalMemory<'static>,
    cpu: Cpu,
}

/// A machine whose memory is all free. It is never taken apart.
fn machine(nr_frames: usize, nr_cpus: u8) -> &'static PhysicalMemory<'static> {
    let nr_frames = u32::try_from(nr_frames).expect("a few GiB");
    let block = u32::try_from(BLOCK_FRAMES).expect("128 MiB");
    let pages: Vec<Page> = (0..nr_frames).map(|_| Page::default()).collect();
    let map = MemMap::new(Pfn::new(BASE), pages.leak()).expect("whole pageblocks");
    let region = PfnRange::new(Pfn::new(BASE), nr_frames).expect("below 16 TiB");
    let memory = PhysicalMemory::new(map, region, Topology::one_node(nr_cpus));
    memory
        .set_hotplug_region(NodeId::ZERO, region, block)
        .expect("whole blocks");
    for block in (0..nr_frames / block).map(BlockIndex) {
        memory.begin_plug(block).expect("it is unplugged");
        memory.plugged(block).expect("it is being plugged");
        memory.online(block, ZoneKind::Movable).expect("it is offline");
    }
    Box::leak(Box::new(memory))
}

fn order(order: u32) -> Order {
    u8::try_from(order).ok().and_then(Order::new).expect("0 to 10")
}

impl FrameAllocator for GuestMm {
    type Hand = CpuHand;

    fn name(&self) -> String {
        OURS.into()
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<CpuHand> {
        let nr_cpus = u8::try_from(nr_hands).expect("a few");
        let memory = machine(nr_frames, nr_cpus);
        let cpus = CpuSet::new(nr_cpus).expect("one at least");
        let hand = |id| CpuHand {
            memory,
            cpu: cpus.claim(id).expect("each once"),
        };
        (0..nr_cpus).filter_map(CpuId::new).map(hand).collect()
    }
}

impl Hand for CpuHand {
    #[inline]
    fn get(&mut self, size: u32) -> Option<usize> {
        let pfn = self.memory.alloc_pages(&self.cpu, Gfp::USER, order(size)).ok()?;
        Some(usize::try_from(pfn.number()).expect("32 bits"))
    }

    #[inline]
    fn put(&mut self, frame: usize, _: u32) {
        let pfn = Pfn::new(u32::try_from(frame).expect("from get"));
        self.memory.free_pages(&self.cpu, pfn).expect("from get");
    }

    fn drain(&mut self) {
        self.memory.drain_all();
    }
}

/// Frames of boot memory, where slabs come from: 64 MiB.
const BOOT: u32 = 1 << 14;

impl ObjectAllocator for GuestMm {
    type Objects = CacheHand;

    fn name(&self) -> String {
        OURS.into()
    }

    fn objects(&self, size: usize) -> CacheHand {
        let span = PfnRange::new(Pfn::new(0), BOOT).expect("64 MiB");
        let pages: Vec<Page> = (0..BOOT).map(|_| Page::default()).collect();
        let map = MemMap::new(Pfn::new(0), pages.leak()).expect("whole pageblocks");
        let memory = Box::leak(Box::new(PhysicalMemory::new(map, span, Topology::one_node(1))));
        let usable = &[PfnRange::new(Pfn::new(1), BOOT - 1).expect("all but the first")];
        let region = BootRegion {
            node: NodeId::ZERO,
            span,
            usable,
            reserved: &[],
        };
        memory.add_boot_region(region).expect("the first region");
        let mut frames = HostFrames::new();
        frames.plug(span);
        let slabs = SlabAllocator::new(frames, &*memory, Debugging::Off);
        let size = u32::try_from(size).expect("a small size");
        let cache = slabs
            .create(&CacheSpec::new("bench", size))
            .expect("a name and a small size");
        let cpus = CpuSet::new(1).expect("one");
        CacheHand {
            slabs,
            cache,
            cpu: cpus.claim(CpuId::ZERO).expect("nobody else is CPU 0"),
        }
    }
}

/// A CPU that uses a cache.
pub(crate) struct CacheHand {
    slabs: SlabAllocator<HostFrames, &'static PhysicalMemory<'static>>,
    cache: Arc<Cache>,
    cpu: Cpu,
}

/// Objects are where their physical address says: nobody touches them. Frame 0 has none, so no address is 0.
impl Objects for CacheHand {
    #[inline]
    fn get(&mut self) -> Option<NonNull<u8>> {
        let object = self.slabs.alloc(&self.cpu, &self.cache, Gfp::KERNEL).ok()?;
        NonNull::new(without_provenance_mut(
            usize::try_from(object.gpa()).expect("below 64 MiB"),
        ))
    }

    #[inline]
    fn put(&mut self, object: NonNull<u8>) {
        let object = ObjAddr::new(object.addr().get() as u64);
        self.slabs
            .free(&self.cpu, &self.cache, object)
            .expect("taken from this cache");
    }
}
