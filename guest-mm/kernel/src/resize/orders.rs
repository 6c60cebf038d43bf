//! What an operator wants of blocks (the control tree): which zone new ones go to, how fast they are emptied, and single blocks taken
//! out of use or put back in use. Asked by the control channel, carried out by the resize worker, to whom blocks belong.

use super::shrink::Emptied;
use super::{Descriptors, Interruption, OfflineBlock, Worker, blame};
use crate::kernel::Kernel;
use crate::log::log;
use crate::nodes;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use guest_kernel::cmdline::Options;
use guest_kernel::control_tree::OnlinePolicy;
use guest_kernel::sync::{Signal, Winner, race};
use guest_mm::migrate::Method;
use guest_mm::{BlockIndex, BlockState, IsolatedBlock, Memmap, NodeId, PAGE_SIZE, ZoneKind};
use guest_sync::SpinLock;

/// How long whoever asked for something waits for those who do it. The host's own patience is a little longer.
pub(crate) const PATIENCE_NS: u64 = 8_000_000_000;

/// What is wanted, and what waits to be done.
#[derive(Debug)]
pub(crate) struct Orders {
    policy: AtomicU8,
    method: AtomicU8,
    memmap: Memmap,
    /// MiB a second; 0 is no limit.
    rate: AtomicU64,
    waiting: SpinLock<VecDeque<Arc<Order>>>,
    pub(super) came: Signal,
    /// What is being done.
    under_way: SpinLock<Option<Arc<Order>>>,
    /// What is being done is to be given up.
    pub(super) cancelled: Signal,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    /// A block is to be something else.
    State(BlockIndex, OnlinePolicy),
    /// All blocks of a node are to be something else.
    Node(NodeId, OnlinePolicy),
    /// What is in use is to be in as few blocks as possible.
    Packed,
}

/// Somebody's wish.
#[derive(Debug)]
struct Order {
    wanted: Wanted,
    outcome: SpinLock<Option<Result<String, String>>>,
    done: Signal,
    /// Nobody waits for the outcome any more: the log says it.
    is_left: AtomicBool,
    /// It ended because it was cancelled.
    is_given_up: AtomicBool,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(block, wanted) => write!(f, "block {} {}", block.0, wanted.name()),
            Self::Node(node, wanted) => write!(f, "node {node} {}", wanted.name()),
            Self::Packed => f.write_str("pack"),
        }
    }
}

impl Wanted {
    /// Whether whoever wants this wants no more of what `other` is about: what was to go out of use is to be in use.
    fn takes_back(self, other: Self) -> bool {
        match (self, other) {
            (Self::State(block, wanted), Self::State(known, OnlinePolicy::Offline)) => {
                block == known && wanted != OnlinePolicy::Offline
            }
            (Self::Node(node, wanted), Self::Node(known, OnlinePolicy::Offline)) => {
                node == known && wanted != OnlinePolicy::Offline
            }
            _ => false,
        }
    }
}

impl Orders {
    /// What the command line says; nothing is asked for yet.
    pub(crate) fn new(options: &Options) -> Self {
        let orders = Self {
            policy: AtomicU8::new(0),
            method: AtomicU8::new(0),
            memmap: options.memmap_on_memory,
            rate: AtomicU64::new(0),
            waiting: SpinLock::default(),
            came: Signal::new(),
            under_way: SpinLock::default(),
            cancelled: Signal::new(),
        };
        orders.set_policy(options.memhp_default_state);
        orders.set_method(options.migrate);
        orders
    }

    /// What becomes of a block that is plugged.
    pub(crate) fn policy(&self) -> OnlinePolicy {
        OnlinePolicy::ALL[usize::from(self.policy.load(Ordering::Relaxed))]
    }

    /// Sets what becomes of blocks that are plugged from now on.
    pub(crate) fn set_policy(&self, policy: OnlinePolicy) {
        self.policy.store(policy as u8, Ordering::Relaxed);
    }

    /// How the pages of blocks get off them.
    pub(crate) fn method(&self) -> Method {
        Method::ALL[usize::from(self.method.load(Ordering::Relaxed))]
    }

    /// Sets how the pages of blocks that are emptied from now on get off them.
    pub(crate) fn set_method(&self, method: Method) {
        self.method.store(method as u8, Ordering::Relaxed);
    }

    /// Where the descriptors of blocks that are plugged are to be.
    pub(crate) const fn memmap(&self) -> Memmap {
        self.memmap
    }

    /// MiB a second that blocks are emptied with; 0 is no limit.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Sets how fast blocks are emptied from now on.
    pub(crate) fn set_rate(&self, mib: u64) {
        self.rate.store(mib, Ordering::Relaxed);
    }
}

/// Makes a block what is wanted of it, and waits for that.
///
/// # Errors
/// Why it is not done, or not yet.
pub(crate) async fn order(kernel: &Kernel, block: BlockIndex, wanted: OnlinePolicy) -> Result<(), String> {
    ask(kernel, Wanted::State(block, wanted)).await.map(drop)
}

/// Takes all blocks of a node out of use, or puts them all back in use, and waits for that.
///
/// # Errors
/// Why it is not done, or not yet; a node that could not be taken out of use is as it was.
pub(crate) async fn order_node(kernel: &Kernel, node: NodeId, wanted: OnlinePolicy) -> Result<(), String> {
    ask(kernel, Wanted::Node(node, wanted)).await.map(drop)
}

/// Gathers what is in use on removable memory in as few blocks as possible. What was done, in a line.
///
/// # Errors
/// Why it is not done, or not yet.
pub(crate) async fn pack(kernel: &Kernel) -> Result<String, String> {
    ask(kernel, Wanted::Packed).await
}

/// Has what is being done for somebody given up, and everything put back that it has begun with: the emptying of a block or a node, or packing. What it
/// was, in a line.
///
/// # Errors
/// Nothing is being done.
pub(crate) async fn cancel(kernel: &Kernel) -> Result<String, String> {
    let under_way = kernel.orders.under_way.lock().clone();
    let order = under_way.ok_or("nothing is being done for anybody")?;
    match cancel_order(kernel, &order).await? {
        true => Ok(alloc::format!("{}: given up\n", order.wanted)),
        false => Err(alloc::format!(
            "{}: was over before it could be given up",
            order.wanted
        )),
    }
}

/// Whether it was given up; it may have been over before.
async fn cancel_order(kernel: &Kernel, order: &Order) -> Result<bool, String> {
    kernel.orders.cancelled.raise();
    match race(order.done.after(0), kernel.timers().sleep(PATIENCE_NS)).await {
        Winner::First(()) => Ok(order.is_given_up.load(Ordering::Relaxed)),
        Winner::Second(()) => Err(alloc::format!("{}: not given up yet", order.wanted)),
    }
}

async fn ask(kernel: &Kernel, wanted: Wanted) -> Result<String, String> {
    let under_way = kernel.orders.under_way.lock().clone();
    if let Some(other) = under_way.filter(|other| wanted.takes_back(other.wanted)) {
        // What was taken out of use before that comes back as anything does.
        if cancel_order(kernel, &other).await? {
            return Ok(String::new());
        }
    }
    let order = Arc::new(Order {
        wanted,
        outcome: SpinLock::new(None),
        done: Signal::new(),
        is_left: AtomicBool::new(false),
        is_given_up: AtomicBool::new(false),
    });
    kernel.orders.waiting.lock().push_back(order.clone());
    kernel.orders.came.raise();
    let _ = race(order.done.after(0), kernel.timers().sleep(PATIENCE_NS)).await;
    let outcome = order.outcome.lock().take();
    outcome.unwrap_or_else(|| {
        let mut waiting = kernel.orders.waiting.lock();
        let before = waiting.len();
        waiting.retain(|known| !Arc::ptr_eq(known, &order));
        let seconds = PATIENCE_NS / 1_000_000_000;
        Err(if waiting.len() < before {
            alloc::format!("nobody came to it within {seconds} s; nothing was done")
        } else {
            order.is_left.store(true, Ordering::Relaxed);
            alloc::format!(
                "not done within {seconds} s; it goes on, and the log says how it ends (cancel gives it up)"
            )
        })
    })
}

impl Worker {
    /// Carries out what was asked for since the last time.
    pub(super) async fn obey(&mut self) -> Result<(), Interruption> {
        loop {
            let next = self.kernel.orders.waiting.lock().pop_front();
            let Some(order) = next else { return Ok(()) };
            *self.kernel.orders.under_way.lock() = Some(order.clone());
            self.cancel_seen = Some(self.kernel.orders.cancelled.count());
            let mut interrupted = Ok(());
            let outcome = match order.wanted {
                Wanted::State(block, wanted) => {
                    let outcome = self.make(block, wanted, &mut interrupted).await;
                    outcome.map(|()| String::new())
                }
                Wanted::Node(node, wanted) => {
                    let outcome = self.make_node(node, wanted, &mut interrupted).await;
                    outcome.map(|()| String::new())
                }
                Wanted::Packed => self.pack(&mut interrupted).await,
            };
            nodes::settle(self.kernel);
            self.cancel_seen = None;
            *self.kernel.orders.under_way.lock() = None;
            let is_given_up = matches!(interrupted, Err(Interruption::Cancelled));
            order.is_given_up.store(is_given_up, Ordering::Relaxed);
            order.is_over(outcome);
            self.kernel.validate();
            match interrupted {
                Ok(()) | Err(Interruption::Cancelled) => {}
                Err(other) => return Err(other),
            }
        }
    }

    async fn make(
        &mut self,
        block: BlockIndex,
        wanted: OnlinePolicy,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<(), String> {
        match wanted {
            OnlinePolicy::Offline => self.take_offline(block, interrupted).await,
            OnlinePolicy::Movable => self.take_online(block, ZoneKind::Movable),
            OnlinePolicy::Kernel => self.take_online(block, ZoneKind::Normal),
        }
    }

    fn take_online(&self, block: BlockIndex, kind: ZoneKind) -> Result<(), String> {
        self.expect_state(block, BlockState::Offline)?;
        let plugged = OfflineBlock {
            block,
            descriptors: Descriptors::Missing,
            zone: None,
        };
        self.bring_all_online(alloc::vec![plugged], kind);
        self.kernel.memory_came.raise();
        self.expect_state(block, BlockState::Online)
    }

    /// Empties a block and takes it out of use; it stays plugged.
    async fn take_offline(
        &mut self,
        block: BlockIndex,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<(), String> {
        let isolated = self
            .kernel
            .phys
            .isolate(block)
            .map_err(|error| blame::isolate_error(self.kernel, &error))?;
        // What is free on it is not to spare any more, and what is in use on it takes as much elsewhere.
        let used_bytes = u64::from(self.kernel.phys.used_pages(&isolated)) * PAGE_SIZE;
        if self.spare_bytes() < used_bytes {
            self.put_back(isolated, None);
            return Err(self.shortage(used_bytes).to_string());
        }
        let mut isolated = isolated;
        if let Err(why) = self.look_at_use(core::slice::from_mut(&mut isolated)).await {
            return self.give_up(isolated, why, interrupted);
        }
        match self.empty(isolated).await {
            Emptied::Yes(offline) => {
                // The descriptors may be on the block itself.
                self.unback(alloc::vec![offline]);
                self.kernel.direct_map.unmap_huge(self.addresses(block));
                Ok(())
            }
            Emptied::No(isolated, reason) => {
                let why = self.why_kept(&isolated, reason);
                self.put_back(isolated, None);
                Err(why)
            }
            Emptied::Interrupted(isolated, why) => self.give_up(isolated, why, interrupted),
        }
    }

    fn give_up(
        &mut self,
        isolated: IsolatedBlock,
        why: Interruption,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<(), String> {
        self.put_back(isolated, None);
        self.kernel.memory_came.raise();
        let text = why.as_str().into();
        *interrupted = Err(why);
        Err(text)
    }

    fn expect_state(&self, block: BlockIndex, wanted: BlockState) -> Result<(), String> {
        match self.kernel.phys.hotplug_region().state(block) {
            None => Err(alloc::format!("there is no block {}", block.0)),
            Some(state) if state == wanted => Ok(()),
            Some(state) => Err(alloc::format!("block {} is {}", block.0, state.name())),
        }
    }

    /// Waits until what is being done for somebody is to be given up; for ever while nothing is.
    pub(super) async fn cancelled(&self) {
        match self.cancel_seen {
            Some(seen) => self.kernel.orders.cancelled.after(seen).await,
            None => core::future::pending().await,
        }
    }
}

impl Order {
    /// Tells whoever waits for it, or the log.
    fn is_over(&self, outcome: Result<String, String>) {
        if self.is_left.load(Ordering::Relaxed) {
            match &outcome {
                Ok(text) if text.is_empty() => log!(Info, "{}: done", self.wanted),
                Ok(text) => log!(Info, "{}: {}", self.wanted, text.trim_end()),
                Err(error) => log!(Warning, "{}: {error}", self.wanted),
            }
        }
        *self.outcome.lock() = Some(outcome);
        self.done.raise();
    }
}
