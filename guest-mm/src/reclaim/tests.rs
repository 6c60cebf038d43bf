//! Requests that wait, and those who serve them.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::Wake;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use super::{Balance, Reclaim, Shrinker};
use crate::tests::phys_model::{descriptors, one_cpu, order, plug, small_memory};
use crate::{
    AllocError, BlockIndex, BootRegion, Gfp, MemMap, NodeId, Order, Page, Pfn, PfnRange, PhysicalMemory,
    Topology, Watermark, ZoneKind,
};

/// A cache that fills itself with frames, and gives them back when asked.
struct Hoard<'a> {
    phys: &'a PhysicalMemory<'a>,
    frames: SpinLock<Vec<Pfn>>,
}

impl<'a> Hoard<'a> {
    /// Takes every frame that `gfp` can have, but `spare`.
    fn of_all(phys: &'a PhysicalMemory<'a>, cpu: &Cpu, gfp: Gfp, spare: usize) -> Self {
        let mut frames = take_all(phys, cpu, gfp);
        frames
            .drain(..spare)
            .for_each(|pfn| phys.free_pages(cpu, pfn).unwrap());
        let frames = SpinLock::new(frames);
        Self { phys, frames }
    }
}

impl Shrinker for Hoard<'_> {
    fn name(&self) -> &str {
        "hoard"
    }

    fn freeable_pages(&self) -> u64 {
        self.frames.lock().len() as u64
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        let mut freed = 0;
        while freed < nr_pages {
            let Some(pfn) = self.frames.lock().pop() else {
                break;
            };
            self.phys.free_pages(cpu, pfn).unwrap();
            freed += 1;
        }
        freed
    }
}

fn take_all(phys: &PhysicalMemory<'_>, cpu: &Cpu, gfp: Gfp) -> Vec<Pfn> {
    std::iter::from_fn(|| phys.alloc_pages(cpu, gfp, Order::ZERO).ok()).collect()
}

/// What a future comes to that has nothing to wait for.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let waker = Arc::new(Task::default()).into();
    match core::pin::pin!(future).poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits"),
    }
}

/// A task that counts how often it was woken.
#[derive(Default)]
struct Task(AtomicU32);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A request under way.
struct Request<'a> {
    task: Arc<Task>,
    future: Pin<Box<dyn Future<Output = Result<Pfn, AllocError>> + 'a>>,
}

impl<'a> Request<'a> {
    fn new(reclaim: &'a Reclaim<'a>, cpu: &'a Cpu, gfp: Gfp, order: Order) -> Self {
        Self {
            task: Arc::default(),
            future: Box::pin(reclaim.alloc_pages(cpu, gfp, order)),
        }
    }

    fn poll(&mut self) -> Poll<Result<Pfn, AllocError>> {
        let waker = self.task.clone().into();
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn wakes(&self) -> u32 {
        self.task.0.load(SeqCst)
    }
}

#[test]
fn a_request_that_may_wait_sleeps_until_a_frame_is_freed_and_gets_it() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    let taken = take_all(&memory, &cpu, Gfp::KERNEL);
    let mut request = Request::new(&reclaim, &cpu, Gfp::KERNEL, Order::ZERO);
    assert!(request.poll().is_pending());
    assert_eq!((request.wakes(), memory.nr_waiting()), (0, 1));
    memory.free_pages(&cpu, taken[7]).unwrap();
    assert_eq!(request.wakes(), 1);
    assert_eq!(request.poll(), Poll::Ready(Ok(taken[7])));
    drop(request);
    assert_eq!(memory.nr_waiting(), 0);
    memory.validate().unwrap();
}

#[test]
fn a_request_that_may_not_wait_fails_at_once_and_an_atomic_one_goes_below_min() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    take_all(&memory, &cpu, Gfp::KERNEL);
    let zone = memory.zone(NodeId::ZERO, ZoneKind::Normal);
    assert_eq!(zone.counters().free_pages, zone.watermark(Watermark::Min));
    let mut refused = Request::new(&reclaim, &cpu, Gfp::NONE, Order::ZERO);
    assert!(matches!(refused.poll(), Poll::Ready(Err(_))));
    let mut atomic = Request::new(&reclaim, &cpu, Gfp::ATOMIC, Order::ZERO);
    assert!(matches!(atomic.poll(), Poll::Ready(Ok(_))));
    assert!(zone.counters().free_pages + zone.counters().cached_pages < zone.watermark(Watermark::Min));
}

#[test]
fn shrinkers_serve_a_request_before_it_has_to_wait() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let hoard = Hoard::of_all(&memory, &cpu, Gfp::KERNEL, 0);
    let held = hoard.freeable_pages();
    let shrinkers: [&dyn Shrinker; 1] = [&hoard];
    let reclaim = Reclaim::new(&memory, &shrinkers);
    let mut request = Request::new(&reclaim, &cpu, Gfp::KERNEL, Order::ZERO);
    assert!(matches!(request.poll(), Poll::Ready(Ok(_))));
    let stat = reclaim.stat();
    assert_eq!(stat.pgsteal_direct, held - hoard.freeable_pages());
    assert_eq!(stat.pgsteal_direct, 32);
    drop(request);
    memory.validate().unwrap();
}

#[test]
fn who_waits_longest_is_served_first_and_one_who_gives_up_passes_the_turn_on() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    let mut taken = take_all(&memory, &cpu, Gfp::KERNEL);
    let mut requests: Vec<Request> = (0..3)
        .map(|_| Request::new(&reclaim, &cpu, Gfp::KERNEL, Order::ZERO))
        .collect();
    assert!(requests.iter_mut().all(|request| request.poll().is_pending()));
    memory.free_pages(&cpu, taken.pop().unwrap()).unwrap();
    assert_eq!(requests.iter().map(Request::wakes).collect::<Vec<_>>(), [1, 0, 0]);
    // The first was called, but gives up: the frame is for the second.
    requests.remove(0);
    assert_eq!(requests.iter().map(Request::wakes).collect::<Vec<_>>(), [1, 0]);
    assert!(requests[0].poll().is_ready());
    assert!(requests[1].poll().is_pending());
    memory.validate().unwrap();
}

#[test]
fn nobody_stands_behind_one_who_wants_what_was_not_freed() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    let reclaim = Reclaim::new(&memory, &[]);
    let movable = take_all(&memory, &cpu, Gfp::USER);
    take_all(&memory, &cpu, Gfp::KERNEL);
    let mut first = Request::new(&reclaim, &cpu, Gfp::KERNEL, Order::ZERO);
    let mut large = Request::new(&reclaim, &cpu, Gfp::USER, order(3));
    let mut small = Request::new(&reclaim, &cpu, Gfp::USER, Order::ZERO);
    assert!(first.poll().is_pending() && large.poll().is_pending() && small.poll().is_pending());
    let of_block = |pfn: &&Pfn| memory.block_of(**pfn).is_some();
    memory
        .free_pages(&cpu, *movable.iter().find(of_block).unwrap())
        .unwrap();
    assert_eq!((first.wakes(), large.wakes(), small.wakes()), (0, 1, 1));
    assert!(large.poll().is_pending() && small.poll().is_ready());
}

#[test]
fn memory_that_comes_with_a_block_is_for_those_who_wait() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    take_all(&memory, &cpu, Gfp::USER);
    let mut request = Request::new(&reclaim, &cpu, Gfp::USER, Order::ZERO);
    assert!(request.poll().is_pending());
    plug(&memory, BlockIndex(0), ZoneKind::Movable);
    assert_eq!(request.wakes(), 1);
    let Poll::Ready(Ok(pfn)) = request.poll() else {
        panic!("there is memory");
    };
    assert_eq!(memory.block_of(pfn), Some(BlockIndex(0)));
}

#[test]
fn many_frames_in_one_piece_are_not_waited_for() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    take_all(&memory, &cpu, Gfp::KERNEL);
    let mut large = Request::new(&reclaim, &cpu, Gfp::KERNEL, order(4));
    assert!(matches!(large.poll(), Poll::Ready(Err(_))));
    assert_eq!(memory.nr_waiting(), 0);
    let mut small = Request::new(&reclaim, &cpu, Gfp::KERNEL, order(3));
    assert!(small.poll().is_pending());
}

/// The daemon's future, polled once.
fn is_wanted(memory: &PhysicalMemory<'_>, task: &Arc<Task>) -> Option<Order> {
    let waker = task.clone().into();
    let mut wanted = core::pin::pin!(memory.daemon_wanted(NodeId::ZERO));
    match wanted.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(order) => order,
        Poll::Pending => None,
    }
}

#[test]
fn the_daemon_is_wanted_below_low_and_reclaims_until_above_high() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let zone = memory.zone(NodeId::ZERO, ZoneKind::Normal);
    let task = Arc::<Task>::default();
    let first = memory.alloc_pages(&cpu, Gfp::KERNEL, order(1)).unwrap();
    assert_eq!(is_wanted(&memory, &task), None, "there is plenty");
    memory.free_pages(&cpu, first).unwrap();
    let hoard = Hoard::of_all(&memory, &cpu, Gfp::KERNEL, 0);
    assert_eq!(is_wanted(&memory, &task), Some(Order::ZERO));
    assert_eq!(is_wanted(&memory, &task), None, "once for each time");

    let shrinkers: [&dyn Shrinker; 1] = [&hoard];
    let reclaim = Reclaim::new(&memory, &shrinkers);
    let Balance {
        freed_pages,
        is_balanced,
    } = at_once(reclaim.balance(&cpu, NodeId::ZERO));
    assert!(is_balanced && freed_pages > 0);
    let counters = zone.counters();
    assert_eq!(
        counters.free_pages + counters.cached_pages,
        zone.watermark(Watermark::High)
    );
    assert_eq!(reclaim.stat().pgsteal_kswapd, freed_pages);
    assert_eq!(at_once(reclaim.balance(&cpu, NodeId::ZERO)).freed_pages, 0);
}

#[test]
fn between_low_and_high_there_is_room_for_what_is_read_ahead() {
    const FRAMES: u32 = 1 << 15;
    let pages: Vec<Page> = (0..FRAMES).map(|_| Page::new()).collect();
    let range = PfnRange::new(Pfn::new(0), FRAMES).unwrap();
    let memory = PhysicalMemory::new(
        MemMap::new(Pfn::new(0), &pages).unwrap(),
        range,
        Topology::one_node(1),
    );
    let region = BootRegion {
        node: NodeId::ZERO,
        span: range,
        usable: &[range],
        reserved: &[],
    };
    memory.add_boot_region(region).unwrap();
    for zone in memory.populated_zones() {
        let gap = zone.watermark(Watermark::High) - zone.watermark(Watermark::Low);
        let managed = zone.counters().managed_pages;
        assert!(gap >= (managed / 64).min(256), "{gap} of {managed}");
    }
}

#[test]
fn a_daemon_without_anything_to_reclaim_says_so_and_ends() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    take_all(&memory, &cpu, Gfp::KERNEL);
    let balance = at_once(Reclaim::new(&memory, &[]).balance(&cpu, NodeId::ZERO));
    assert_eq!((balance.freed_pages, balance.is_balanced), (0, false));
}

#[test]
fn what_a_cpu_kept_at_hand_is_found_by_the_daemon_for_those_who_wait() {
    let (pages, cpu) = (descriptors(0x400), one_cpu());
    let memory = small_memory(&pages, 0x400, 1);
    let reclaim = Reclaim::new(&memory, &[]);
    let taken = take_all(&memory, &cpu, Gfp::KERNEL);
    let mut request = Request::new(&reclaim, &cpu, Gfp::KERNEL, Order::ZERO);
    assert!(request.poll().is_pending());
    // As if another CPU had looked before the request was counted: the frame goes to its list, and nobody is woken.
    let waiting = memory.shortage_hidden(|| memory.free_pages(&cpu, taken[0]).unwrap());
    assert_eq!((waiting, request.wakes()), (1, 0));
    at_once(reclaim.balance(&cpu, NodeId::ZERO));
    assert_eq!(request.wakes(), 1);
    assert!(matches!(request.poll(), Poll::Ready(Ok(_))));
}
