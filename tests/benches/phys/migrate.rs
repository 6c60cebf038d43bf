//! Remap migration off an isolated block, over real memory, against the copying alone.

#![expect(
    unsafe_code,
    reason = "frames are plain memory here, as they are behind the kernel's direct map"
)]

use std::ptr::copy_nonoverlapping;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mm::migrate::BatchEnd;
use guest_mm::{
    Backing, BlockIndex, BootRegion, FlushBatch, Frames, HugeAdvice, MapRequest, MemMap, Mm, Mmu, NodeId,
    Order, Page, Pfn, PfnRange, PhysicalMemory, Place, Prot, Topology, VaRange, ZoneKind,
};
use guest_sync::{Cpu, CpuId, CpuSet};

use crate::clock::{Sample, Stopwatch};
use crate::measure::Contestant;
use crate::memory::leaked;
use crate::random::Random;
use crate::rows::OURS;

const PAGE: usize = 4096;
/// Frames of boot memory: for page tables.
const BOOT: u32 = 1 << 13;
/// Frames of a block: 64 MiB.
const BLOCK: u32 = 1 << 14;
const NR_BLOCKS: u32 = 3;
/// Pages of the program: three quarters of a block.
const PROGRAM: u32 = BLOCK / 4 * 3;
/// Pages moved with one flush.
const BATCH: u32 = 512;

/// The peer: the copying alone.
pub(crate) const MEMCPY: &str = "memcpy of random pages";

/// Frames one after the other.
#[derive(Debug)]
struct Flat(*mut u8);

impl Flat {
    fn new(nr_frames: u32) -> Self {
        let memory = leaked(nr_frames as usize * PAGE);
        // Every page is there before anything is measured.
        memory.fill(1);
        memory.fill(0);
        Self(memory.as_mut_ptr())
    }

    fn at(&self, pfn: Pfn) -> *mut u8 {
        // SAFETY: the frames that guest-mm knows are inside the memory.
        unsafe { self.0.add(pfn.number() as usize * PAGE) }
    }

    fn inside(&self, pfn: Pfn, offset: usize) -> *mut u8 {
        // SAFETY: below the size of a frame.
        unsafe { self.at(pfn).add(offset) }
    }

    fn word(&self, pfn: Pfn, index: usize) -> &AtomicU64 {
        // SAFETY: inside the frame, and aligned.
        let word = unsafe { self.at(pfn).cast::<u64>().add(index) };
        // SAFETY: words of page tables are only reached this way, and the memory is never freed.
        unsafe { AtomicU64::from_ptr(word) }
    }
}

impl Frames for Flat {
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        self.word(pfn, index).load(Ordering::Relaxed)
    }

    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        self.word(pfn, index).store(value, Ordering::Relaxed);
    }

    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        self.word(pfn, index).swap(value, Ordering::AcqRel)
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        // SAFETY: a chunk inside the memory, which the caller has for itself.
        unsafe { self.at(pfn).write_bytes(0, PAGE << order.number()) };
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        // SAFETY: two chunks inside the memory, which the caller has for itself and which do not overlap.
        unsafe { copy_nonoverlapping(self.at(from), self.at(to), PAGE << order.number()) };
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        let from = self.inside(pfn, offset);
        // SAFETY: inside the frame, and no slice refers to frames.
        unsafe { copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        let to = self.inside(pfn, offset);
        // SAFETY: inside the frame, and no slice refers to frames.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

/// No processor uses the translations here, so a flush costs nothing: the figure is the library's work and the copying.
#[derive(Debug)]
struct NoMmu;

impl Mmu for NoMmu {
    fn flush(&self, _: &FlushBatch) {}
}

/// A machine with a program whose pages move from block to block.
struct Machine {
    mm: Mm<'static, Flat, NoMmu>,
    cpu: Cpu,
}

impl Machine {
    fn new(advice: HugeAdvice) -> Self {
        let nr_frames = BOOT + NR_BLOCKS * BLOCK;
        let memory = memory(nr_frames);
        let cpu = CpuSet::new(1)
            .and_then(|cpus| cpus.claim(CpuId::ZERO))
            .expect("the only CPU");
        let mm = Mm::new(memory, Flat::new(nr_frames), NoMmu);
        let program = mm.create_space(&cpu, &[]).expect("there is memory for a table");
        let area = MapRequest {
            len: u64::from(PROGRAM) * PAGE as u64,
            place: Place::Anywhere,
            prot: Prot::READ.with(Prot::WRITE),
            backing: Backing::Anonymous(advice),
        };
        let va = mm.mmap(program, &area).expect("an empty space");
        let range = VaRange::new(va, area.len).expect("user memory");
        mm.populate(&cpu, program, range)
            .expect("there is memory for all of it");
        Self { mm, cpu }
    }

    /// Empties the block with most pages on it; the pages that moved.
    fn move_once(&mut self) -> u64 {
        let fullest = self.mm.phys.rank_blocks().last().expect("three blocks").block;
        let mut block = self.mm.phys.isolate(fullest).expect("online, and nothing pinned");
        while self.mm.migrate_batch(&self.cpu, &mut block, BATCH).end == BatchEnd::Budget {}
        let moved = block.moved_pages();
        assert!(moved > 0, "the program's pages are somewhere");
        self.mm.phys.undo(block);
        u64::from(moved)
    }
}

fn memory(nr_frames: u32) -> &'static PhysicalMemory<'static> {
    let range = |start, nr_pages| PfnRange::new(Pfn::new(start), nr_pages).expect("below 16 TiB");
    let pages: Vec<Page> = (0..nr_frames).map(|_| Page::default()).collect();
    let map = MemMap::new(Pfn::new(0), pages.leak()).expect("whole pageblocks");
    let memory = PhysicalMemory::new(map, range(0, nr_frames), Topology::one_node(1));
    let boot = BootRegion {
        node: NodeId::ZERO,
        span: range(0, BOOT),
        usable: &[range(0, BOOT)],
        reserved: &[],
    };
    memory.add_boot_region(boot).expect("the first region");
    memory
        .set_hotplug_region(NodeId::ZERO, range(BOOT, NR_BLOCKS * BLOCK), BLOCK)
        .expect("whole blocks");
    for block in (0..NR_BLOCKS).map(BlockIndex) {
        memory.begin_plug(block).expect("it is unplugged");
        memory.plugged(block).expect("it is being plugged");
        memory.online(block, ZoneKind::Movable).expect("it is offline");
    }
    Box::leak(Box::new(memory))
}

/// Pages of that size move from block to block. One operation is one page moved.
pub(crate) fn ours(advice: HugeAdvice) -> Contestant {
    let mut machine = Machine::new(advice);
    let order = order_of(advice);
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let watch = Stopwatch::start();
            let moved: u64 = (0..repeats).map(|_| machine.move_once()).sum();
            watch.stop(moved >> order.number())
        }),
    }
}

/// Copies as many pages of that size as the program has, in random order, to another random place each.
pub(crate) fn memcpy(advice: HugeAdvice) -> Contestant {
    let order = order_of(advice);
    let frames = Flat::new(2 * BLOCK);
    let nr_pages = BLOCK >> order.number();
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut places = |base: u32| {
        let mut places: Vec<u32> = (0..nr_pages)
            .map(|page| base + (page << order.number()))
            .collect();
        for place in (1..places.len()).rev() {
            places.swap(place, random.below(place + 1));
        }
        places
    };
    let pairs: Vec<(u32, u32)> = places(0).into_iter().zip(places(BLOCK)).collect();
    Contestant {
        name: MEMCPY.into(),
        sample: Box::new(move |repeats| copy_all(&frames, &pairs, order, repeats)),
    }
}

fn copy_all(frames: &Flat, pairs: &[(u32, u32)], order: Order, repeats: u64) -> Sample {
    let watch = Stopwatch::start();
    for repeat in 0..repeats {
        for &(one, other) in pairs {
            let (from, to) = if repeat % 2 == 0 {
                (one, other)
            } else {
                (other, one)
            };
            frames.copy(Pfn::new(from), Pfn::new(to), order);
        }
    }
    watch.stop(repeats * pairs.len() as u64)
}

fn order_of(advice: HugeAdvice) -> Order {
    match advice {
        HugeAdvice::Huge => Order::PAGEBLOCK,
        HugeAdvice::NoHuge => Order::ZERO,
    }
}
