//! The virtio-mem driver (virtio 1.3 section 5.15): plugs and unplugs blocks, and says what the host wants.
//!
//! A request is a future; the answer arrives through [`MemDriver::on_interrupt`], which the kernel calls when the
//! device's interrupt fired. One request is with the device at a time, others wait their turn: a request covers
//! up to 65535 neighbouring blocks, so what counts is joining blocks ([`runs`]), not pipelining.
//!
//! What memory is in use is not known here: the kernel empties blocks before it unplugs them, and touches no
//! unplugged memory (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE is accepted).

mod block;
mod exchange;
mod region;
#[cfg(test)]
mod tests;

pub use block::{BlockIndex, BlockRun, runs};
pub use region::{BadRegion, Region};
pub use virtio_wire::mem::{BlockState as RunState, Config};

use crate::dma::{DmaArea, DmaMemory, Gpa};
use crate::fault::{DeviceFault, StartError};
use crate::queue::VirtQueue;
use crate::relocate::{Finally, OtherMemory, Relocate, starts};
use crate::transport::{Features, Registers, Setup, Transport, TransportError};
use crate::wake::WakerSet;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;
use exchange::{Exchange, Transaction};
use virtio_wire::device_id;
use virtio_wire::mem::{QUEUE_REQUEST, Request, ResponseType, feature};

/// A request and its answer are two descriptors; the rest is room for nothing.
const QUEUE_SIZE: u16 = 2;

const FEATURES: Features = Features {
    supported: feature::UNPLUGGED_INACCESSIBLE | feature::ACPI_PXM,
    required: 0,
};

/// Why a request did not do what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// NACK: not with the present `requested_size`. Read the configuration again.
    Nack,
    /// BUSY: the host cannot now; the same request may succeed later.
    Busy,
    /// ERROR: the device finds the request wrong, for instance because a block is in the requested state already.
    Error,
    /// The run is not inside the region; nothing was sent.
    OutsideRegion,
    /// The driver was started again meanwhile: ask for the state of the blocks.
    Interrupted,
    /// The device broke down; nothing works before [`MemDriver::restart`]. The state of the blocks is unknown.
    Device(DeviceFault),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nack => f.write_str("the device denied the request"),
            Self::Busy => f.write_str("the device is busy"),
            Self::Error => f.write_str("the device found the request wrong"),
            Self::OutsideRegion => f.write_str("the blocks are outside the device's region"),
            Self::Interrupted => f.write_str("the device was reset before it answered"),
            Self::Device(fault) => fault.fmt(f),
        }
    }
}

impl core::error::Error for RequestError {}

/// A memory device in use. It belongs to one CPU's executor (it is not `Sync`): tasks hold shared references,
/// the interrupt path calls [`on_interrupt`](Self::on_interrupt) between polls.
#[derive(Debug)]
pub struct MemDriver<R, M> {
    transport: Transport<R>,
    region: Region,
    /// Never borrowed while the device is notified nor while a waker runs: both may lead back here.
    state: RefCell<State<M>>,
}

#[derive(Debug)]
struct State<M> {
    queue: VirtQueue<M, ()>,
    /// The request and, behind it, the response.
    buffers: DmaArea<M>,
    exchange: Exchange,
    /// Tasks whose request waits for the one before to end.
    turn: WakerSet,
    /// The memory is about to be exchanged: no request is sent.
    holds_requests: bool,
    /// Who waits for the device to have none.
    movers: WakerSet,
    config: ConfigNews,
    /// What was read last.
    known_config: Option<Config>,
    config_waiters: WakerSet,
    fault: Option<DeviceFault>,
}

/// Whether the device announced a change that nobody has read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConfigNews {
    None,
    Unread,
}

impl<R: Registers, M: DmaMemory + Clone> MemDriver<R, M> {
    /// Whether a memory device is behind `registers`: three reads, no writes.
    pub fn is_behind(registers: R) -> bool {
        Transport::probe(registers, device_id::MEM).is_ok()
    }

    /// Finds the memory device behind `registers` and takes it into use: resets it (which leaves plugged blocks
    /// plugged), negotiates, sets up the queue in `memory`.
    ///
    /// # Errors
    /// [`StartError`] when that fails at any point; the device is then marked FAILED.
    pub fn start(registers: R, memory: &M) -> Result<Self, StartError> {
        let transport = Transport::probe(registers, device_id::MEM)?;
        let (region, queue, buffers) = transport.initialise(FEATURES, |setup| {
            let region = Region::read(setup)?;
            let size = setup.queue_size(QUEUE_REQUEST, QUEUE_SIZE..=QUEUE_SIZE)?;
            let queue = VirtQueue::new(memory.clone(), size)?;
            setup.install(QUEUE_REQUEST, queue.addresses())?;
            let buffers = DmaArea::allocate(memory.clone(), exchange::BUFFER_BYTES)?;
            Ok::<_, StartError>((region, queue, buffers))
        })?;
        let state = State {
            queue,
            buffers,
            exchange: Exchange::default(),
            turn: WakerSet::new(),
            holds_requests: false,
            movers: WakerSet::new(),
            config: ConfigNews::Unread,
            known_config: None,
            config_waiters: WakerSet::new(),
            fault: None,
        };
        Ok(Self {
            transport,
            region,
            state: RefCell::new(state),
        })
    }

    /// Resets the device and sets it up again, after a [`DeviceFault`] or when in doubt. Plugged blocks stay
    /// plugged; a request in flight ends with [`RequestError::Interrupted`].
    ///
    /// # Errors
    /// As [`start`](Self::start); also when the device changed what may not change (block size, region). The
    /// driver then refuses requests, and restarting can be tried again.
    pub fn restart(&self) -> Result<(), StartError> {
        self.start_again(None)
    }

    /// Resets the device and sets it up again; with `other` memory, and nobody the wiser, if there is some.
    fn start_again(&self, other: Option<&mut OtherMemory<M>>) -> Result<(), StartError> {
        let mut borrowed = self.state.borrow_mut();
        let state = &mut *borrowed;
        let moves = other.is_some();
        // Until this has succeeded nobody is to use the queue.
        state.fault.get_or_insert(DeviceFault::NeedsReset);
        let restarted = self.transport.initialise(FEATURES, |setup: &Setup<'_, R>| {
            if let Some(other) = other {
                other.exchange(&mut [state.queue.area_mut(), &mut state.buffers]);
            }
            if Region::read(setup)? != self.region {
                return Err(StartError::Config(BadRegion::Changed));
            }
            let size = state.queue.addresses().size;
            setup.queue_size(QUEUE_REQUEST, size..=size)?;
            state.queue.reset();
            Ok(setup.install(QUEUE_REQUEST, state.queue.addresses())?)
        });
        let woken = state.all_waiters();
        if restarted.is_ok() {
            state.fault = None;
        }
        if restarted.is_ok() && !moves {
            state.config = ConfigNews::Unread;
            state.exchange.interrupt();
        }
        drop(borrowed);
        woken.wake();
        restarted
    }

    /// What the device announced while it was being reset came to nobody's ears.
    fn look_for_news(&self) {
        let now = self.region.read_config(&self.transport).ok();
        let mut state = self.state.borrow_mut();
        let wish = |config: Config| (config.requested_size, config.usable_region_size);
        if now.map(wish) == state.known_config.map(wish) {
            return;
        }
        state.config = ConfigNews::Unread;
        let woken = state.config_waiters.take();
        drop(state);
        woken.wake();
    }

    /// What never changes about the device: where its blocks are and how large.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The device's configuration now. Costs eight register reads; from here on
    /// [`config_changed`](Self::config_changed) waits for the next change.
    ///
    /// # Errors
    /// [`TransportError::ConfigUnstable`] when it changed on every attempt.
    pub fn config(&self) -> Result<Config, TransportError> {
        // Before reading: a change during the read is news again.
        self.state.borrow_mut().config = ConfigNews::None;
        let config = self.region.read_config(&self.transport)?;
        self.state.borrow_mut().known_config = Some(config);
        Ok(config)
    }

    /// Waits until the device has announced a change since [`config`](Self::config) was last called; at once if
    /// it was never called.
    ///
    /// # Errors
    /// The fault, when the device breaks down: no change will be announced any more.
    pub async fn config_changed(&self) -> Result<(), DeviceFault> {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            match (state.fault, state.config) {
                (Some(fault), _) => Poll::Ready(Err(fault)),
                (None, ConfigNews::Unread) => Poll::Ready(Ok(())),
                (None, ConfigNews::None) => {
                    state.config_waiters.add(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Asks the device to plug `run`, all of it or nothing. On success its memory may be used, and holds anything.
    ///
    /// # Errors
    /// [`RequestError`]. A future dropped before it is done leaves the state of the blocks to be asked for.
    pub async fn plug(&self, run: BlockRun) -> Result<(), RequestError> {
        let blocks = self.region.range(run)?;
        self.acknowledged(Request::Plug(blocks)).await
    }

    /// Gives `run` back, all of it or nothing. The kernel has stopped using its memory before, and does not touch
    /// it again unless this fails.
    ///
    /// # Errors
    /// As [`plug`](Self::plug).
    pub async fn unplug(&self, run: BlockRun) -> Result<(), RequestError> {
        let blocks = self.region.range(run)?;
        self.acknowledged(Request::Unplug(blocks)).await
    }

    /// Gives every block back.
    ///
    /// # Errors
    /// As [`plug`](Self::plug).
    pub async fn unplug_all(&self) -> Result<(), RequestError> {
        self.acknowledged(Request::UnplugAll).await
    }

    /// Asks which blocks of `run` are plugged.
    ///
    /// # Errors
    /// As [`plug`](Self::plug).
    pub async fn state(&self, run: BlockRun) -> Result<RunState, RequestError> {
        let blocks = self.region.range(run)?;
        let response = Transaction::new(self, Request::State(blocks)).await?;
        acknowledged(response.response_type())?;
        response
            .block_state()
            .map_err(|unknown| self.broken(DeviceFault::UnknownState(unknown)))
    }

    async fn acknowledged(&self, request: Request) -> Result<(), RequestError> {
        acknowledged(Transaction::new(self, request).await?.response_type())
    }

    /// The device interrupted: takes answers and configuration changes, and wakes whom they concern. Two register
    /// accesses, and a third when the configuration changed.
    pub fn on_interrupt(&self) {
        let cause = self.transport.take_interrupt();
        if cause.config_change {
            self.on_config_change();
        }
        if cause.used_buffers {
            self.on_used_buffers();
        }
    }

    fn on_config_change(&self) {
        if self.transport.needs_reset() {
            self.broken(DeviceFault::NeedsReset);
        }
        let mut state = self.state.borrow_mut();
        state.config = ConfigNews::Unread;
        let woken = state.config_waiters.take();
        drop(state);
        woken.wake();
    }

    fn on_used_buffers(&self) {
        let mut woken = WakerSet::new();
        let taken = self.state.borrow_mut().take_response(&mut woken);
        if let Err(fault) = taken {
            self.broken(fault);
        }
        woken.wake();
    }

    /// Records that the device cannot be used any more, and tells everybody.
    fn broken(&self, fault: DeviceFault) -> RequestError {
        let mut state = self.state.borrow_mut();
        // The first fault is the cause, what follows are consequences.
        let fault = *state.fault.get_or_insert(fault);
        let woken = state.all_waiters();
        drop(state);
        woken.wake();
        RequestError::Device(fault)
    }
}

impl<R: Registers, M: DmaMemory + Clone> Relocate for MemDriver<R, M> {
    fn shared_memory(&self) -> Vec<Gpa> {
        let state = self.state.borrow();
        starts(&[state.queue.area(), &state.buffers])
    }

    async fn relocate(&self) -> Result<(), StartError> {
        self.state.borrow_mut().holds_requests = true;
        let _over = Finally(|| {
            let mut state = self.state.borrow_mut();
            state.holds_requests = false;
            let woken = state.turn.take();
            drop(state);
            woken.wake();
        });
        // Blocks stay plugged over a reset (section 5.15.5.2); whether a request was carried out would not be known.
        poll_fn(|cx| self.state.borrow_mut().poll_answered(cx)).await?;
        let mut other = {
            let state = self.state.borrow();
            OtherMemory::like(&[state.queue.area(), &state.buffers])?
        };
        let restarted = self.start_again(Some(&mut other));
        other.release();
        if restarted.is_ok() {
            self.look_for_news();
        }
        restarted
    }
}

impl<M> State<M> {
    fn all_waiters(&mut self) -> WakerSet {
        let mut all = self.turn.take();
        all.append(self.movers.take());
        all.append(self.config_waiters.take());
        all.append(self.exchange.take_waiter());
        all
    }
}

fn acknowledged(response: ResponseType) -> Result<(), RequestError> {
    match response {
        ResponseType::Ack => Ok(()),
        ResponseType::Nack => Err(RequestError::Nack),
        ResponseType::Busy => Err(RequestError::Busy),
        ResponseType::Error => Err(RequestError::Error),
    }
}
