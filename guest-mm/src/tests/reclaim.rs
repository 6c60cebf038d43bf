//! Reclaim of programs' pages, with a disk that does what it is told: who waits for it, and who does not.

use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::disk::{BlockDevice, BlockNr, Fault, SimulatedDisk};
use crate::mm::{IoChoice, PageIo};
use crate::reclaim::{Reclaim, Reclaimed, Scheme, Shrinker};
use crate::swap::AreaHeader;
use crate::tests::machine::{TestMm, anonymous, machine, store};
use crate::{BlockIndex, Gfp, HugeAdvice, NodeId, Order, Pfn, SpaceId, Watermark};

const BLOCKS: u32 = 4096;

/// A program that stores to page after page until there is no memory left; its pages.
fn fill(mm: &TestMm<'_>, cpu: &Cpu) -> (SpaceId, u64) {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 << 20, HugeAdvice::NoHuge)).unwrap();
    let pages = (0..).take_while(|page| store(mm, cpu, id, va + page * 4096, page + 1).is_ok());
    (id, pages.count() as u64)
}

/// The disk takes all that is asked of it, and does so many requests.
fn work(mm: &TestMm<'_>, cpu: &Cpu, disk: &SimulatedDisk<PageIo>, requests: usize) {
    while let Some((request, io)) = mm.next_io(IoChoice::All, 8) {
        disk.submit(request, io).unwrap();
    }
    for _ in 0..requests {
        disk.step(&mm.frames, 0);
        while let Some((io, result)) = disk.completed() {
            mm.end_io(cpu, io, result);
        }
    }
}

fn disk() -> SimulatedDisk<PageIo> {
    SimulatedDisk::new(BLOCKS.into(), usize::MAX)
}

fn poll<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls a future that waits for nothing but its turn.
fn to_the_end<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1000 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return result;
        }
    }
    panic!("it waits for more than its turn");
}

#[test]
fn a_direct_reclaim_waits_for_the_disk_and_ends_with_what_that_has_freed() {
    machine!(mm, cpu, 512, 2);
    mm.swap_on(&AreaHeader::new(BLOCKS), 0).unwrap();
    fill(&mm, &cpu);
    let reclaim = Reclaim::new(mm.phys, &[]).with_pages(&mm, Scheme::TwoList);
    let disk = disk();
    let mut waiting = Box::pin(reclaim.try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
    for _ in 0..64 {
        assert!(poll(&mut waiting).is_pending());
    }
    assert!(
        mm.phys.nr_being_written() >= 32 && mm.phys.nr_being_written() < 128,
        "{} pages are written for one that is wanted",
        mm.phys.nr_being_written()
    );
    assert_eq!(reclaim.stat().reclaim_throttled, 1, "it does not spin");
    let mut steps = 0;
    let reclaimed = loop {
        work(&mm, &cpu, &disk, 1);
        steps += 1;
        if let Poll::Ready(reclaimed) = poll(&mut waiting) {
            break reclaimed;
        }
    };
    assert!(
        reclaimed.has_progress && reclaimed.freed_pages >= 8,
        "{reclaimed:?}"
    );
    assert!(steps > 1, "who waits is woken for more than one request");
    mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
    mm.validate().unwrap();
}

#[test]
fn without_a_place_for_pages_there_is_no_progress_and_no_waiting() {
    machine!(mm, cpu, 512, 2);
    fill(&mm, &cpu);
    let reclaim = Reclaim::new(mm.phys, &[]).with_pages(&mm, Scheme::TwoList);
    let reclaimed = to_the_end(reclaim.try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
    let nothing = Reclaimed {
        freed_pages: 0,
        has_progress: false,
    };
    assert_eq!(reclaimed, nothing);
    let balance = to_the_end(reclaim.balance(&cpu, NodeId::ZERO));
    assert!(!balance.is_balanced);
}

#[test]
fn a_disk_that_fails_all_writes_is_no_progress_and_ends_the_attempt() {
    machine!(mm, cpu, 512, 2);
    mm.swap_on(&AreaHeader::new(BLOCKS), 0).unwrap();
    let (id, pages) = fill(&mm, &cpu);
    let reclaim = Reclaim::new(mm.phys, &[]).with_pages(&mm, Scheme::TwoList);
    let disk = disk();
    for block in 0..BLOCKS {
        disk.break_block(Fault::Write, BlockNr(block.into()));
    }
    // Also while the disk is slow, and pages of others are still on their way when this one has tried everything.
    for requests in [16, 1, 1] {
        let mut waiting = Box::pin(reclaim.try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
        let reclaimed = loop {
            if let Poll::Ready(reclaimed) = poll(&mut waiting) {
                break reclaimed;
            }
            for zone in mm.phys.populated_zones() {
                mm.shrink_zone(&cpu, zone, 32);
            }
            work(&mm, &cpu, &disk, requests);
        };
        assert!(!reclaimed.has_progress, "{reclaimed:?}");
    }
    assert!(mm.phys.nr_being_written() > 0, "or this shows nothing");
    assert_eq!(
        mm.space(id).unwrap().swap_pages() + mm.space(id).unwrap().rss_pages(),
        pages
    );
    mm.validate().unwrap();
}

#[test]
fn the_daemon_takes_pages_of_programs_until_every_zone_is_above_high_and_not_many_more() {
    machine!(mm, cpu, 512, 4);
    mm.swap_on(&AreaHeader::new(BLOCKS), 0).unwrap();
    let (id, pages) = fill(&mm, &cpu);
    let reclaim = Reclaim::new(mm.phys, &[]).with_pages(&mm, Scheme::TwoList);
    let disk = disk();
    let mut running = Box::pin(reclaim.balance(&cpu, NodeId::ZERO));
    let balance = loop {
        if let Poll::Ready(balance) = poll(&mut running) {
            break balance;
        }
        work(&mm, &cpu, &disk, 1);
    };
    assert!(balance.is_balanced, "{balance:?}");
    let (mut wanted, mut free) = (0, 0);
    for zone in mm.phys.populated_zones() {
        let counters = zone.counters();
        // What programs' requests must leave behind, too.
        let floor = zone.floor_at(Watermark::High, Gfp::USER);
        assert!(counters.free_pages + counters.cached_pages >= floor);
        wanted += floor;
        free += counters.free_pages + counters.cached_pages;
    }
    assert!(free < wanted + 128, "{free} are free, and {wanted} are wanted");
    let space = mm.space(id).unwrap();
    assert_eq!(space.rss_pages() + space.swap_pages(), pages);
    assert!(space.swap_pages() >= balance.freed_pages);
    mm.validate().unwrap();
}

/// A cache that says that it has so many frames, and notes how many it is asked for.
struct Asked(SpinLock<Vec<u64>>);

impl Shrinker for Asked {
    fn name(&self) -> &'static str {
        "asked"
    }

    fn freeable_pages(&self) -> u64 {
        800
    }

    fn shrink(&self, _: &Cpu, nr_pages: u64) -> u64 {
        self.0.lock().push(nr_pages);
        0
    }
}

/// A cache whose frames are taken again as soon as they are given back.
struct Recycled;

impl Shrinker for Recycled {
    fn name(&self) -> &'static str {
        "recycled"
    }

    fn freeable_pages(&self) -> u64 {
        4
    }

    fn shrink(&self, _: &Cpu, _: u64) -> u64 {
        1
    }
}

#[test]
fn frames_that_the_kernel_gives_itself_in_turn_are_no_progress() {
    machine!(mm, cpu, 512, 2);
    fill(&mm, &cpu);
    let shrinkers: [&dyn Shrinker; 1] = [&Recycled];
    let reclaim = Reclaim::new(mm.phys, &shrinkers).with_pages(&mm, Scheme::TwoList);
    let reclaimed = to_the_end(reclaim.try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
    assert!(
        reclaimed.freed_pages > 0 && !reclaimed.has_progress,
        "{reclaimed:?}"
    );
    // Where nothing else is reclaimed it is all there is.
    let reclaimed =
        to_the_end(Reclaim::new(mm.phys, &shrinkers).try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
    assert!(reclaimed.has_progress);
}

#[test]
fn caches_are_asked_for_as_large_a_part_as_pages_are_looked_at() {
    machine!(mm, cpu, 512, 2);
    fill(&mm, &cpu);
    let asked = Asked(SpinLock::new(Vec::new()));
    let shrinkers: [&dyn Shrinker; 1] = [&asked];
    let reclaim = Reclaim::new(mm.phys, &shrinkers).with_pages(&mm, Scheme::TwoList);
    to_the_end(reclaim.try_to_free_pages(&cpu, Gfp::USER, Order::ZERO));
    let asked = asked.0.lock().clone();
    assert_eq!(asked.len(), 13, "once for each priority: {asked:?}");
    assert!(asked.is_sorted(), "harder and harder: {asked:?}");
    assert_eq!(asked[12], 1600, "all of it, twice over");
    assert!(
        (100..=500).contains(&asked[10]),
        "about a quarter, twice over: {asked:?}"
    );
}

/// Remembers that it was called.
#[derive(Default)]
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_for_memory_is_called_when_a_block_is_put_back_in_use() {
    machine!(mm, cpu, 512, 1);
    let block = mm.phys.isolate(BlockIndex(0)).unwrap();
    let take = || mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).ok();
    let taken: Vec<Pfn> = core::iter::from_fn(take).collect();
    let mut waiting = Box::pin(mm.phys.until_memory(Gfp::USER, Order::ZERO, take));
    let called = Arc::new(Called::default());
    let waker = Waker::from(called.clone());
    assert!(
        waiting
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    assert!(!called.0.load(Ordering::Relaxed));
    mm.phys.undo(block);
    assert!(called.0.load(Ordering::Relaxed), "nobody was called");
    let Poll::Ready(pfn) = poll(&mut waiting) else {
        panic!("the block is free");
    };
    assert_eq!(mm.phys.block_of(pfn), Some(BlockIndex(0)));
    mm.phys.free_pages(&cpu, pfn).unwrap();
    mm.phys.free_bulk(&cpu, &taken).unwrap();
    mm.validate().unwrap();
}
