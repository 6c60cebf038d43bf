//! Areas and mappings of high memory used by several threads at once, each a CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::vec::Vec;

use guest_sync::SpinLock;

use crate::frames::Frames;
use crate::host::HostFrames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables, KernelTlb};
use crate::kmap::{Kmap, PermanentMaps};
use crate::pfn::{Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::vmalloc::{Tag, Vmalloc, VmallocError};

const BASE: u64 = 64 << 40;

/// Free frames, shared.
struct SharedSource(SpinLock<Vec<Pfn>>);

impl SharedSource {
    fn new(nr_pages: u32) -> Self {
        Self(SpinLock::new((0..nr_pages).map(Pfn::new).collect()))
    }

    fn nr_free(&self) -> usize {
        self.0.lock().len()
    }
}

impl FrameSource for SharedSource {
    fn take(&self, order: Order) -> Option<Pfn> {
        assert_eq!(order, Order::ZERO);
        self.0.lock().pop()
    }

    fn give(&self, pfn: Pfn, order: Order) {
        assert_eq!(order, Order::ZERO);
        self.0.lock().push(pfn);
    }
}

/// Flushes nothing, as the tests look at the entries themselves, and lets the other threads run in between.
#[derive(Default)]
struct Flushes(AtomicU64);

impl KernelTlb for Flushes {
    fn flush(&self, _: KernelRange) {
        self.0.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
    }

    fn flush_local(&self, range: KernelRange) {
        self.flush(range);
    }

    fn exchange(&self, _: KernelRange, _: &mut dyn FnMut()) {
        unreachable!("no thread stands still for another one here");
    }
}

fn machine() -> (HostFrames, SharedSource, KernelTables) {
    let mut frames = HostFrames::new();
    frames.plug(PfnRange::new(Pfn::new(0), PAGEBLOCK_NR_PAGES).unwrap());
    let source = SharedSource::new(PAGEBLOCK_NR_PAGES);
    let tables = KernelTables::new(&frames, &source).unwrap();
    (frames, source, tables)
}

/// A number that looks random (Marsaglia's xorshift).
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

#[test]
fn threads_that_take_and_free_areas_never_share_a_frame_or_an_address() {
    let (frames, source, tables) = machine();
    let vmalloc = Vmalloc::new(tables, KernelRange::new(BASE, 300 * PAGE_SIZE).unwrap());
    let tlb = Flushes::default();
    thread::scope(|scope| {
        for tag in 1..=4_u64 {
            let (frames, source, vmalloc, tlb) = (&frames, &source, &vmalloc, &tlb);
            scope.spawn(move || {
                let mut random = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut held: Vec<KernelRange> = Vec::new();
                let marks = |area: KernelRange| {
                    area.pages()
                        .map(move |va| (tables.lookup(frames, va).0.pfn(), va ^ tag))
                };
                for _ in 0..1500 {
                    let bytes = (1 + next(&mut random) % 24) * PAGE_SIZE;
                    match next(&mut random) % 8 {
                        0..=3 => match vmalloc.vmalloc(frames, source, bytes, Tag::new("thread")) {
                            Ok(area) => {
                                marks(area).for_each(|(pfn, mark)| frames.write(pfn, 9, mark));
                                held.push(area);
                            }
                            Err(VmallocError::NoRoom { .. } | VmallocError::NoFrames) => {
                                vmalloc.purge(frames, source, tlb);
                            }
                            Err(error) => panic!("{error}"),
                        },
                        4..=6 if !held.is_empty() => {
                            let at = usize::try_from(next(&mut random)).unwrap() % held.len();
                            let area = held.swap_remove(at);
                            assert!(marks(area).all(|(pfn, mark)| frames.read(pfn, 9) == mark));
                            vmalloc.vfree(frames, area.start()).unwrap();
                        }
                        _ => {
                            vmalloc.purge(frames, source, tlb);
                        }
                    }
                }
                held.iter()
                    .for_each(|area| vmalloc.vfree(frames, area.start()).unwrap());
            });
        }
    });
    vmalloc.purge(&frames, &source, &tlb);
    vmalloc.validate(&frames).unwrap();
    let stats = vmalloc.stats();
    assert_eq!((stats.nr_areas, stats.nr_pages, stats.nr_lazy_pages), (0, 0, 0));
    // The root, two directories, one page table, and nodes.
    let out = PAGEBLOCK_NR_PAGES as usize - source.nr_free();
    assert_eq!(out, 4 + stats.nr_node_frames as usize);
}

/// Runs a future on this thread, which sleeps while there is nothing to do.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// A lost call would leave a thread asleep for ever.
#[test]
fn more_threads_than_slots_all_get_their_turns_and_their_frames() {
    let (frames, source, tables) = machine();
    let window = KernelRange::new(BASE, 3 * PAGE_SIZE).unwrap();
    let maps = PermanentMaps::new(tables, &frames, &source, window).unwrap();
    let tlb = Flushes::default();
    thread::scope(|scope| {
        for seed in 1..=6_u64 {
            let (frames, maps, tlb) = (&frames, &maps, &tlb);
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let is_right = |kmap: &Kmap| tables.lookup(frames, kmap.va()).0.pfn() == kmap.pfn();
                for _ in 0..2000 {
                    let pfn = Pfn::new(1 << 20 | u32::try_from(next(&mut random) % 9).unwrap());
                    let kmap = block_on(maps.kmap(frames, tlb, pfn));
                    assert!(kmap.pfn() == pfn && is_right(&kmap));
                    if next(&mut random).is_multiple_of(4) {
                        thread::yield_now();
                    }
                    assert!(is_right(&kmap));
                }
            });
        }
    });
    assert_eq!((maps.stats().nr_used, maps.nr_waiting()), (0, 0));
    assert_eq!(maps.stats().maps, 6 * 2000);
    maps.validate(&frames).unwrap();
}
