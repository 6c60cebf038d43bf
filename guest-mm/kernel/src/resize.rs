//! The resize worker: makes the plugged size what the host asks for. Driven by the device's interrupts.
//!
//! The planner (guest-virtio) says what to do next; growing and shrinking are in the files beside this one. The
//! worker reads the configuration, works until the target is reached or nothing more can be done, says why, and waits:
//! for a new target, for memory that came free, or, after a growing pause, for its luck to change.

pub(crate) mod blame;
mod choose;
mod difficult;
mod evict;
mod grow;
mod kept;
pub(crate) mod kernel_pages;
mod node;
pub(crate) mod orders;
mod pace;
mod pack;
mod shrink;
mod together;

use self::blame::Blames;
use crate::devices::{Memory, restart};
use crate::kernel::{Kernel, Passes, ResizeStatus};
use crate::log::log;
use crate::nodes;
use core::ops::Range;
use guest_kernel::sync::{Winner, race};
use guest_mm::migrate::Refusal;
use guest_mm::{BlockIndex, BlockState, PAGE_SIZE, PfnRange, ZoneKind};
use guest_virtio::mem::{BlockRun, RequestError, RunState};
use guest_virtio::plan::{Planner, StallReason, Step};
use kernel_pages::Drivers;
use pace::Pace;

/// The first pause after a stall, and the longest; each is twice the one before.
const FIRST_PAUSE_NS: u64 = 100_000_000;
const LONGEST_PAUSE_NS: u64 = 5_000_000_000;

/// A block that is plugged and not in use.
#[derive(Clone, Copy)]
struct OfflineBlock {
    block: BlockIndex,
    descriptors: Descriptors,
    /// Where it was in use, and is again if it does not leave; one that was in no use stays so.
    zone: Option<ZoneKind>,
}

/// Whether a block's part of the array of descriptors has memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Descriptors {
    There,
    /// There was no memory for them, or they are to be on the block itself, where they come and go with its use.
    Missing,
}

/// Why a piece of work ended early.
enum Interruption {
    /// The host wants something else now.
    NewTarget,
    /// Whoever wanted it does not any more.
    Cancelled,
    /// The device is out of order.
    Device(RequestError),
}

impl Interruption {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::NewTarget => "given up: the host has asked for another size meanwhile",
            Self::Cancelled => "given up: somebody has cancelled it",
            Self::Device(_) => "given up: the memory device is out of order",
        }
    }
}

/// The worker's state.
struct Worker {
    kernel: &'static Kernel,
    device: &'static Memory,
    planner: Planner,
    /// `Kernel::memory_came` before the work that stalled: what came since is a reason to try again.
    memory_seen: u64,
    /// The last page that would not leave the block that was emptied last.
    refusal: Option<Refusal>,
    /// What keeps blocks, since a target was last begun with.
    blames: Blames,
    /// Drivers with memory on the block that is emptied.
    drivers: Drivers,
    pace: Pace,
    /// How often something was cancelled before what is being done for somebody was begun; `None` while nothing is.
    cancel_seen: Option<u64>,
}

/// Follows the host's wishes for as long as the guest runs.
pub(crate) async fn work(kernel: &'static Kernel, device: &'static Memory) {
    let region = device.region();
    let blocks = PfnRange::inside(region.addr().raw(), region.region_size());
    let block_nr_pages = u32::try_from(region.block_size() / PAGE_SIZE);
    let (Some(blocks), Ok(block_nr_pages)) = (blocks, block_nr_pages) else {
        log!(Error, "memory device: region beyond the addresses of this guest");
        return;
    };
    if let Err(error) =
        kernel
            .phys
            .set_hotplug_region(kernel.node_at(region.addr().raw()), blocks, block_nr_pages)
    {
        log!(Error, "memory device: {error}");
        return;
    }
    log!(
        Info,
        "memory device: {} blocks of {} MiB at {:#x}",
        region.nr_blocks(),
        region.block_size() >> 20,
        region.addr().raw()
    );
    let planner = Planner::all_unplugged(region.nr_blocks());
    let mut worker = Worker {
        kernel,
        device,
        planner,
        memory_seen: 0,
        refusal: None,
        blames: Blames::default(),
        drivers: Drivers::default(),
        pace: Pace::default(),
        cancel_seen: None,
    };
    worker.start_empty().await;
    let mut pause = FIRST_PAUSE_NS;
    loop {
        let orders_seen = kernel.orders.came.count();
        match worker.reach_target().await {
            Ok(None) => pause = FIRST_PAUSE_NS,
            Ok(Some(stall)) => pause = worker.wait_for_luck(stall, orders_seen, pause).await,
            Err(Interruption::NewTarget | Interruption::Cancelled) => {
                pause = FIRST_PAUSE_NS;
                continue;
            }
            Err(Interruption::Device(error)) => worker.restart_device(error).await,
        }
    }
}

impl Worker {
    /// Blocks that are plugged already were somebody else's (this guest was rebooted): their contents mean nothing.
    async fn start_empty(&mut self) {
        let plugged = self.device.config().map_or(0, |config| config.plugged_size);
        if plugged > 0 && self.device.unplug_all().await.is_err() {
            self.planner = Planner::all_unknown(self.device.region().nr_blocks());
        }
    }

    /// Works until the target is reached (and waits for the next one) or nothing is left to try.
    async fn reach_target(&mut self) -> Result<Option<StallReason>, Interruption> {
        let Ok(config) = self.device.config() else {
            return Ok(Some(StallReason::Busy));
        };
        let target = self.device.region().target(&config);
        self.asked_for(config.requested_size);
        log!(
            Debug,
            "memory device: {} MiB requested, {} MiB plugged",
            config.requested_size >> 20,
            config.plugged_size >> 20
        );
        self.memory_seen = self.kernel.memory_came.count();
        self.planner.retry();
        self.blames = Blames::default();
        loop {
            let step = self.planner.step(target);
            self.kernel.resize.lock().at_work = matches!(step, Step::Plug(_) | Step::Unplug(_));
            let result = match step {
                Step::Done => {
                    self.publish(None);
                    return self.next_target().await;
                }
                Step::Stalled(reason) => {
                    self.publish(Some(reason));
                    return Ok(Some(reason));
                }
                Step::Query(run) => self.query(run).await,
                Step::Plug(run) => self.grow(run).await,
                Step::Unplug(count) => self.shrink(count).await,
            };
            self.publish_plugged();
            nodes::settle(self.kernel);
            self.kernel.validate();
            result?;
            self.interrupted().await?;
            self.obey().await?;
        }
    }

    /// The host wants so many bytes plugged. When that is new, blocks that leave are counted anew, and what was said of another size does
    /// not hold any more.
    fn asked_for(&self, requested: u64) {
        let before = Passes::of(&self.kernel.phys.stats());
        let mut status = self.kernel.resize.lock();
        status.tries += 1;
        if status.requested != requested {
            *status = ResizeStatus {
                requested,
                plugged: status.plugged,
                before,
                tries: 1,
                ..ResizeStatus::default()
            };
        }
    }

    /// Fails when the host has announced a change, or what is being done is cancelled, without waiting for that.
    async fn interrupted(&self) -> Result<(), Interruption> {
        let cancels = self.kernel.orders.cancelled.count();
        if self.cancel_seen.is_some_and(|seen| cancels > seen) {
            return Err(Interruption::Cancelled);
        }
        match race(self.device.config_changed(), async {}).await {
            Winner::First(Ok(())) => Err(Interruption::NewTarget),
            Winner::First(Err(fault)) => Err(Interruption::Device(RequestError::Device(fault))),
            Winner::Second(()) => Ok(()),
        }
    }

    /// Waits for the next target, and does meanwhile what an operator asks for.
    async fn next_target(&mut self) -> Result<Option<StallReason>, Interruption> {
        loop {
            let seen = self.kernel.orders.came.count();
            self.obey().await?;
            let orders = self.kernel.orders.came.after(seen);
            if let Winner::First(changed) = race(self.device.config_changed(), orders).await {
                return changed
                    .map(|()| None)
                    .map_err(|fault| Interruption::Device(RequestError::Device(fault)));
            }
        }
    }

    /// After a stall: waits for a new target, for memory where that was missing, for an operator, or for the pause to end. Returns the next pause.
    async fn wait_for_luck(&self, stall: StallReason, orders_seen: u64, pause: u64) -> u64 {
        let memory = async {
            match stall {
                StallReason::NoMemory => self.kernel.memory_came.after(self.memory_seen).await,
                // Programs give memory back all the time: that lets nobody else's page go.
                _ => core::future::pending().await,
            }
        };
        let event = race(memory, self.kernel.orders.came.after(orders_seen));
        let luck = race(event, self.kernel.timers().sleep(pause));
        match race(self.device.config_changed(), luck).await {
            Winner::Second(Winner::Second(())) => (pause * 2).min(LONGEST_PAUSE_NS),
            Winner::First(_) | Winner::Second(Winner::First(_)) => FIRST_PAUSE_NS,
        }
    }

    /// Starts a broken device again; what it makes of its blocks must be asked for.
    async fn restart_device(&mut self, error: RequestError) {
        log!(Error, "memory device: {error}");
        restart(self.kernel, || self.device.restart()).await;
    }

    /// Asks the device what became of `run`, and makes the memory manager's view agree.
    async fn query(&mut self, run: BlockRun) -> Result<(), Interruption> {
        match self.device.state(run).await {
            Ok(state) => {
                self.planner.known(run, state);
                for block in run.blocks() {
                    self.reconcile(BlockIndex(block.raw()), state);
                }
                Ok(())
            }
            Err(error @ (RequestError::Device(_) | RequestError::Interrupted)) => {
                Err(Interruption::Device(error))
            }
            Err(_) => {
                self.planner.unanswered(run);
                Ok(())
            }
        }
    }

    fn reconcile(&self, block: BlockIndex, state: RunState) {
        let phys = self.kernel.phys;
        let known = phys.hotplug_region().state(block);
        let result = match (state, known) {
            (RunState::Plugged, Some(BlockState::Unplugged)) => {
                phys.begin_plug(block).and_then(|()| phys.plugged(block))
            }
            (RunState::Plugged, Some(BlockState::Plugging)) => phys.plugged(block),
            (RunState::Unplugged, Some(BlockState::Plugging)) => phys.cancel_plug(block),
            (RunState::Unplugged, Some(BlockState::Offline)) => phys.unplugged(block),
            _ => Ok(()),
        };
        let is_unused = phys.hotplug_region().state(block) == Some(BlockState::Offline);
        if let Err(error) = result {
            log!(Error, "memory device: {error}");
        } else if is_unused {
            self.bring_online(OfflineBlock {
                block,
                descriptors: Descriptors::Missing,
                zone: Some(ZoneKind::Movable),
            });
        }
    }

    /// Physical addresses of a block of this region.
    fn addresses(&self, block: BlockIndex) -> Range<u64> {
        let size = self.device.region().block_size();
        let start = self.device.region().addr().raw() + u64::from(block.0) * size;
        start..start + size
    }

    fn publish(&self, stall: Option<StallReason>) {
        let known = self.kernel.resize.lock().stall;
        if let Some(reason) = stall
            && known != stall
        {
            log!(Info, "resize stalled: {reason}");
        }
        self.publish_plugged();
        self.tell_result(stall);
    }

    fn publish_plugged(&self) {
        let plugged = u64::from(self.planner.plugged_blocks()) * self.device.region().block_size();
        self.kernel.resize.lock().plugged = plugged;
    }
}
