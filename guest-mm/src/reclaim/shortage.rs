//! Who waits for memory, and the daemons to be woken when it runs low. Part of physical memory, because frees wake.
//!
//! Requests that the same frames can serve wait in the same queue: by the highest zone they may use, and by order. A
//! free calls the first of each queue that it may serve, so nobody stands behind one who wants more. (One who wants a
//! certain node may be first and called in vain; then those behind are called by the daemon, which looks every 100 ms.)

use alloc::boxed::Box;
use core::array;

use guest_sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::gfp::Gfp;
use crate::node::{NodeId, NodeState};
use crate::pfn::Order;
use crate::phys::PhysicalMemory;
use crate::reclaim::COSTLY_ORDER;
use crate::wait::WaitQueue;
use crate::zone::{NR_ZONES, ZoneKind};

/// Waiters in a queue for whom there is room without allocating: single frames, more.
const ROOM: [usize; NR_ORDERS] = [64, 8, 8, 8];
/// Orders that are waited for.
const NR_ORDERS: usize = COSTLY_ORDER as usize + 1;
/// Nobody has asked the daemon for anything.
const NOTHING_WANTED: u8 = u8::MAX;

/// What a node's daemon waits for ("Understanding the Linux Kernel", 3rd ed., table 8-3: `kswapd_wait`, `kswapd_max_order`).
#[derive(Debug)]
struct Daemon {
    wait: WaitQueue,
    /// Largest order that was asked for since it last looked, or [`NOTHING_WANTED`].
    wanted: AtomicU8,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shortage {
    /// Requests that wait. While there are any, frees bypass the lists of CPUs.
    nr_waiting: AtomicU32,
    /// By highest zone and order; greater orders are with the last.
    queues: [[WaitQueue; NR_ORDERS]; NR_ZONES],
    daemons: Box<[Daemon]>,
    /// Those that compact.
    compactors: Box<[Daemon]>,
}

impl Shortage {
    pub(crate) fn new(nr_nodes: u8) -> Self {
        let daemon = |_| Daemon {
            wait: WaitQueue::with_room(1),
            wanted: AtomicU8::new(NOTHING_WANTED),
        };
        Self {
            nr_waiting: AtomicU32::new(0),
            queues: array::from_fn(|_| ROOM.map(WaitQueue::with_room)),
            daemons: (0..nr_nodes).map(daemon).collect(),
            compactors: (0..nr_nodes).map(daemon).collect(),
        }
    }

    /// Whether somebody waits for memory.
    #[inline]
    pub(crate) fn is_there(&self) -> bool {
        self.nr_waiting.load(Ordering::Relaxed) > 0
    }

    /// A frame of such a zone was freed: the first of each queue that it may serve looks.
    pub(crate) fn memory_freed(&self, zone: ZoneKind) {
        for queues in &self.queues[zone.index()..] {
            for queue in queues {
                queue.wake_one();
            }
        }
    }

    /// Much memory came at a time: everybody looks.
    pub(crate) fn memory_came(&self) {
        if self.is_there() {
            self.queues.iter().flatten().for_each(WaitQueue::wake_all);
        }
    }

    fn queue(&self, highest: ZoneKind, order: Order) -> &WaitQueue {
        &self.queues[highest.index()][order.index().min(NR_ORDERS - 1)]
    }

    /// Memory of the node runs low, and a chunk of `order` was wanted.
    pub(crate) fn wake_daemon(&self, node: NodeId, order: Order) {
        self.daemons[node.index()].wake(order);
    }

    /// A chunk of `order` was wanted of the node, which has none.
    pub(crate) fn wake_compactor(&self, node: NodeId, order: Order) {
        self.compactors[node.index()].wake(order);
    }

    /// The node has lost its last memory: its daemons look, and end.
    pub(crate) fn dismiss(&self, node: NodeId) {
        self.daemons[node.index()].wait.wake_all();
        self.compactors[node.index()].wait.wake_all();
    }
}

impl Daemon {
    fn wake(&self, order: Order) {
        let known = self.wanted.load(Ordering::Relaxed);
        if known != NOTHING_WANTED && known >= order.number() {
            return;
        }
        self.wanted.store(order.number(), Ordering::Release);
        self.wait.wake_one();
    }

    /// Sleeps until it is woken; the largest order that was asked for since, or `None` once its node has no memory.
    async fn until_wanted(&self, has_memory: impl Fn() -> bool) -> Option<Order> {
        let look = || match self.wanted.swap(NOTHING_WANTED, Ordering::AcqRel) {
            _ if !has_memory() => Some(None),
            NOTHING_WANTED => None,
            order => Some(Order::new(order)),
        };
        self.wait.until(look).await
    }
}

/// Counts one who waits, for as long as it exists.
struct Counted<'a>(&'a Shortage);

impl<'a> Counted<'a> {
    fn new(shortage: &'a Shortage) -> Self {
        // Sequentially consistent, as is the lock that the next attempt takes: a free either sees the count, or has
        // put its frame where that attempt finds it. One whose store is still on its way is found by the daemon.
        shortage.nr_waiting.fetch_add(1, Ordering::SeqCst);
        Self(shortage)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.nr_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PhysicalMemory<'_> {
    /// Repeats `attempt`, which takes a chunk of `order` as a `gfp` request, until it succeeds: each time that such memory
    /// has become free and it is this one's turn. Those who wait for the same are called in the order in which they came.
    /// Dropping the future gives the turn to the next.
    pub async fn until_memory<T>(&self, gfp: Gfp, order: Order, mut attempt: impl FnMut() -> Option<T>) -> T {
        if let Some(done) = attempt() {
            return done;
        }
        let _counted = Counted::new(&self.shortage);
        let queue = self.shortage.queue(gfp.highest_zone(), order);
        queue.until(attempt).await
    }

    /// Requests that wait for memory.
    pub fn nr_waiting(&self) -> u32 {
        self.shortage.nr_waiting.load(Ordering::Relaxed)
    }

    /// Sleeps until memory of the node has fallen below a `Low` watermark for some request; returns the largest order
    /// that was wanted, or `None` once the node has no memory. For one daemon a node.
    pub async fn daemon_wanted(&self, node: NodeId) -> Option<Order> {
        let has_memory = || self.node_state(node) == NodeState::Online;
        self.shortage.daemons[node.index()].until_wanted(has_memory).await
    }

    /// Sleeps until a request for more than one frame has failed that the node could have served; returns the largest order that was
    /// wanted, or `None` once the node has no memory. For one daemon a node (Linux `kcompactd`).
    pub async fn compaction_wanted(&self, node: NodeId) -> Option<Order> {
        let has_memory = || self.node_state(node) == NodeState::Online;
        let order = self.shortage.compactors[node.index()]
            .until_wanted(has_memory)
            .await;
        self.counts.compact_daemon_wake.add(u64::from(order.is_some()));
        order
    }

    /// Lets everybody look who waits for memory, after what CPUs keep at hand was given back. For daemons, and whoever
    /// frees memory by other means than this library.
    pub fn look_again(&self) {
        if self.shortage.is_there() {
            self.drain_all();
            self.shortage.memory_came();
        }
    }
}

#[cfg(test)]
impl PhysicalMemory<'_> {
    /// Runs `hidden` as if nobody waited; returns how many did.
    pub(crate) fn shortage_hidden(&self, hidden: impl FnOnce()) -> u32 {
        let waiting = self.shortage.nr_waiting.swap(0, Ordering::SeqCst);
        hidden();
        self.shortage.nr_waiting.store(waiting, Ordering::SeqCst);
        waiting
    }
}
