//! Work for the manager's own mappings, on every CPU, with data that is checked: `load=vmalloc` and `load=kmap`
//! on the command line (as Linux' `lib/test_vmalloc.c`). What it did is in `vmstat`.
//!
//! Every task waits a little between two steps, so that programs run beside it.

#![expect(unsafe_code, reason = "looks at frames where they are mapped")]

use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::{AllFrames, MappedFrame, pattern};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_kernel::cmdline::Load;
use guest_mm::frames::Frames;
use guest_mm::kernel_map::KernelRange;
use guest_mm::pfn::PAGE_BYTES;
use guest_mm::vmalloc::Tag;
use guest_mm::{Gfp, Pfn};
use guest_sync::CpuId;

/// Between two steps of a task: a CPU that is never idle and runs no program takes no interrupts.
const PAUSE_NS: u64 = 2_000_000;
/// How long a task of `kmap` keeps a mapping.
const KMAP_PAUSE_NS: u64 = 8_000_000;
/// Areas that a task has at a time.
const MOST_AREAS: usize = 8;
/// Tasks of `kmap` on each CPU.
const KMAP_TASKS: u64 = 12;
/// Frames that each of them maps in turn.
const KMAP_FRAMES: usize = 16;
/// Every so many areas one has 2 MiB; the others have up to 40 pages.
const LARGE_EVERY: u64 = 32;
/// Frames that are mapped one after the other.
const MAPPED_FRAMES: usize = 5;

/// What an load has done.
#[derive(Debug)]
pub(crate) struct Counters {
    steps: AtomicU64,
    pages_checked: AtomicU64,
    pages_wrong: AtomicU64,
    no_memory: AtomicU64,
}

static VMALLOC: Counters = Counters::new();
static KMAP: Counters = Counters::new();

impl Counters {
    const fn new() -> Self {
        Self {
            steps: AtomicU64::new(0),
            pages_checked: AtomicU64::new(0),
            pages_wrong: AtomicU64::new(0),
            no_memory: AtomicU64::new(0),
        }
    }

    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn check(&self, is_right: bool) {
        self.pages_checked.fetch_add(1, Ordering::Relaxed);
        self.pages_wrong
            .fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }

    fn write(&self, out: &mut impl fmt::Write, name: &str) -> fmt::Result {
        let counters = [
            ("steps", &self.steps),
            ("pages_checked", &self.pages_checked),
            ("pages_wrong", &self.pages_wrong),
            ("no_memory", &self.no_memory),
        ];
        counters.into_iter().try_for_each(|(what, count)| {
            writeln!(out, "load_{name}_{what} {}", count.load(Ordering::Relaxed))
        })
    }
}

/// The counters of all loads.
pub(crate) fn vmstat(out: &mut impl fmt::Write) -> fmt::Result {
    VMALLOC.write(out, "vmalloc")?;
    KMAP.write(out, "kmap")
}

/// Starts an load on every CPU.
pub(crate) fn start(kernel: &'static Kernel, load: Load) {
    let cpus: Vec<CpuId> = kernel.programs_by_cpu().map(|(id, _)| id).collect();
    for cpu in cpus {
        let seed = u64::from(cpu.number()) << 32;
        match load {
            Load::Vmalloc => {
                kernel.start_task(cpu, load_vmalloc(kernel, seed | 1));
            }
            Load::Kmap => {
                for task in 1..=KMAP_TASKS {
                    kernel.start_task(cpu, load_kmap(kernel, seed | task));
                }
            }
        }
    }
}

/// Numbers that look random (G. Marsaglia, "Xorshift RNGs", 2003); the seed is not 0.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Areas come and go in any order, each with its own contents.
async fn load_vmalloc(kernel: &'static Kernel, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut areas: Vec<(KernelRange, u64)> = Vec::with_capacity(MOST_AREAS);
    loop {
        if areas.len() == MOST_AREAS || (!areas.is_empty() && random.below(3) == 0) {
            let (area, seed) =
                areas.swap_remove(usize::try_from(random.below(areas.len() as u64)).unwrap_or(0));
            for (page, va) in (0..).zip(area.pages()) {
                VMALLOC.check(mapped(va).holds(seed.wrapping_add(page)));
            }
            kernel.areas.free(area.start()).expect("the area is this task's");
        } else {
            let is_large = random.below(LARGE_EVERY) == 0;
            let nr_pages = if is_large { 512 } else { 1 + random.below(40) };
            match kernel.areas.allocate(nr_pages << 12, Tag::new("load")) {
                Ok(area) => {
                    let seed = random.below(u64::MAX);
                    (0..)
                        .zip(area.pages())
                        .for_each(|(page, va)| mapped(va).fill(seed.wrapping_add(page)));
                    areas.push((area, seed));
                }
                Err(_) => {
                    VMALLOC.no_memory.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if random.below(8) == 0 {
            load_vmap(kernel, random.below(u64::MAX));
        }
        VMALLOC.step();
        kernel.timers().sleep(PAUSE_NS).await;
    }
}

/// Frames are written one by one, and read as one area.
fn load_vmap(kernel: &Kernel, seed: u64) {
    let mut pages = [Pfn::default(); MAPPED_FRAMES];
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM);
    let nr_pages = kernel.phys.alloc_bulk(this_cpu(), gfp, &mut pages);
    let pages = &pages[..nr_pages];
    for (page, &pfn) in (0..).zip(pages) {
        AllFrames(kernel.high).write(pfn, 511, pattern(seed, page));
    }
    if let Ok(area) = kernel.areas.map(pages, Tag::new("load")) {
        for (page, va) in (0..).zip(area.pages()) {
            VMALLOC.check(mapped(va).last_word() == pattern(seed, page));
        }
        kernel.areas.unmap(area.start()).expect("just mapped");
    }
    for &pfn in pages {
        kernel.phys.free_pages(this_cpu(), pfn).expect("just allocated");
    }
}

/// Frames are mapped in turn, kept mapped over a pause, and looked at through both windows.
async fn load_kmap(kernel: &'static Kernel, seed: u64) {
    let mut pages = [Pfn::default(); KMAP_FRAMES];
    let gfp = Gfp::KERNEL.with(Gfp::HIGHMEM);
    loop {
        let nr_pages = kernel.phys.alloc_bulk(this_cpu(), gfp, &mut pages);
        if nr_pages == 0 {
            KMAP.no_memory.fetch_add(1, Ordering::Relaxed);
            kernel.timers().sleep(PAUSE_NS).await;
        }
        for (round, &pfn) in (0_u64..).zip(&pages[..nr_pages]) {
            let seed = seed.wrapping_add(round << 40);
            let kmap = kernel.high.kmap(pfn).await;
            mapped(kmap.va()).fill(seed);
            kernel.timers().sleep(KMAP_PAUSE_NS).await;
            KMAP.check(mapped(kmap.va()).holds(seed));
            let mut bytes = [0; PAGE_BYTES];
            AllFrames(kernel.high).read_bytes(pfn, 0, &mut bytes);
            let words = bytes.chunks_exact(8).zip(0..);
            KMAP.check(
                words
                    .into_iter()
                    .all(|(word, index)| *word == pattern(seed, index).to_le_bytes()),
            );
            KMAP.step();
        }
        for &pfn in &pages[..nr_pages] {
            kernel
                .phys
                .free_pages(this_cpu(), pfn)
                .expect("this task allocated it");
        }
    }
}

fn mapped(va: u64) -> MappedFrame {
    // SAFETY: each caller has an area or a mapping of its own there.
    unsafe { MappedFrame::at(va) }
}
