//! The balloon driver (virtio 1.3 section 5.5): hands pages to the host and takes them back, by number, and says how the
//! guest's memory is used when the host asks.
//!
//! Which pages those are is the kernel's business: it takes them from its allocator before [`BalloonDriver::inflate`], and may use
//! them again only after [`BalloonDriver::deflate`] (VIRTIO_BALLOON_F_MUST_TELL_HOST is accepted). Each queue has one request at a time.
//!
//! A device that is reset takes the balloon for empty. When that happens only because the driver's memory moves ([`Relocate`]), the pages stay
//! where they are, and the kernel is asked to tell the device of all of them once more ([`BalloonDriver::has_been_forgotten`]).

mod channel;
#[cfg(test)]
mod tests;

pub use virtio_wire::balloon::{Config, Stat, StatTag};

use crate::dma::{DmaArea, DmaMemory, Gpa};
use crate::fault::{DeviceFault, StartError};
use crate::queue::Notify;
use crate::relocate::{Finally, OtherMemory, Relocate, starts};
use crate::transport::{Features, Registers, Setup, Transport, TransportError};
use crate::wake::WakerSet;
use alloc::vec::Vec;
use channel::Channel;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll};
use virtio_wire::balloon::{Numbering, PFN_SIZE, Queue, feature, offset};
use virtio_wire::{device_id, mmio};

/// Page numbers in one request, at most.
pub const PAGES_AT_ONCE: usize = 256;

const FEATURES: Features = Features {
    supported: feature::MUST_TELL_HOST | feature::STATS_VQ,
    required: 0,
};

/// A balloon device in use. As the memory driver it belongs to one CPU's executor.
#[derive(Debug)]
pub struct BalloonDriver<R, M> {
    transport: Transport<R>,
    /// Never borrowed while the device is notified nor while a waker runs: both may lead back here.
    state: RefCell<State<M>>,
}

#[derive(Debug)]
struct State<M> {
    features: u64,
    channels: Vec<Channel<M>>,
    /// The device announced a change that nobody has read yet.
    has_news: bool,
    config_waiters: WakerSet,
    /// The memory is about to be exchanged: no pages are sent.
    holds_pages: bool,
    /// The device was reset while there were pages in the balloon.
    has_forgotten: bool,
    fault: Option<DeviceFault>,
}

impl<R: Registers, M: DmaMemory + Clone> BalloonDriver<R, M> {
    /// Finds the balloon behind `registers` and takes it into use, with nothing in it.
    ///
    /// # Errors
    /// [`StartError`] when that fails at any point; the device is then marked FAILED.
    pub fn start(registers: R, memory: &M) -> Result<Self, StartError> {
        let transport = Transport::probe(registers, device_id::BALLOON)?;
        let (features, channels) = transport.initialise(FEATURES, |setup| {
            let features = setup.features();
            let channels: Result<Vec<_>, StartError> = Queue::ALL
                .into_iter()
                .filter_map(|queue| Some((queue, Numbering::Fixed.index_of(queue, features)?)))
                .map(|(queue, index)| Channel::new(setup, memory, queue, index))
                .collect();
            Ok::<_, StartError>((features, channels?))
        })?;
        let state = State {
            features,
            channels,
            has_news: true,
            config_waiters: WakerSet::new(),
            holds_pages: false,
            has_forgotten: false,
            fault: None,
        };
        Ok(Self {
            transport,
            state: RefCell::new(state),
        })
    }

    /// Resets the device and sets it up again, after a [`DeviceFault`]. The balloon is empty then: every page that was in
    /// it may be used.
    ///
    /// # Errors
    /// As [`start`](Self::start); restarting can be tried again.
    pub fn restart(&self) -> Result<(), StartError> {
        self.start_again(None)
    }

    /// Resets the device and sets it up again; with `other` memory, if there is some.
    fn start_again(&self, mut other: Option<&mut OtherMemory<M>>) -> Result<(), StartError> {
        let mut state = self.state.borrow_mut();
        state.fault.get_or_insert(DeviceFault::NeedsReset);
        let before = state.features;
        let channels = &mut state.channels;
        let restarted = self.transport.initialise(FEATURES, |setup: &Setup<'_, R>| {
            if let Some(other) = &mut other {
                let areas = channels.iter_mut().flat_map(Channel::areas_mut);
                other.exchange(&mut areas.collect::<Vec<_>>());
            }
            if setup.features() != before {
                let accepted = setup.features();
                return Err(TransportError::FeaturesRefused { accepted }.into());
            }
            channels.iter_mut().try_for_each(|channel| channel.reset(setup))
        });
        if restarted.is_ok() {
            state.fault = None;
            state.has_news = true;
            state.has_forgotten = other.is_some();
        }
        let woken = state.all_waiters();
        drop(state);
        woken.wake();
        restarted
    }

    /// Whether the device takes the balloon for empty though it is not, since this was last asked: its pages are to be handed to the host once more.
    pub fn has_been_forgotten(&self) -> bool {
        core::mem::take(&mut self.state.borrow_mut().has_forgotten)
    }

    /// Whether the host wants statistics.
    pub fn wants_statistics(&self) -> bool {
        self.state.borrow().features & feature::STATS_VQ != 0
    }

    /// How many pages the host wants in the balloon now. From here on [`config_changed`](Self::config_changed) waits for
    /// the next change.
    ///
    /// # Errors
    /// [`TransportError::ConfigUnstable`] when it changed on every attempt.
    pub fn target(&self) -> Result<u32, TransportError> {
        // Before reading: a change during the read is news again.
        self.state.borrow_mut().has_news = false;
        self.transport
            .read_config(|config| config.read32(offset::NUM_PAGES))
    }

    /// Tells the host how many pages are in the balloon.
    pub fn set_actual(&self, pages: u32) {
        let at = mmio::CONFIG_OFFSET + offset::ACTUAL as u64;
        self.transport.registers().write32(at, pages);
    }

    /// Waits until the device has announced a change since [`target`](Self::target) was last called, or it [has
    /// forgotten](Self::has_been_forgotten) what is in the balloon.
    ///
    /// # Errors
    /// The fault, when the device breaks down: no change will be announced any more.
    pub async fn config_changed(&self) -> Result<(), DeviceFault> {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            match (state.fault, state.has_news || state.has_forgotten) {
                (Some(fault), _) => Poll::Ready(Err(fault)),
                (None, true) => Poll::Ready(Ok(())),
                (None, false) => {
                    state.config_waiters.add(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Hands pages to the host, by number, at most [`PAGES_AT_ONCE`]: their contents are lost.
    ///
    /// # Errors
    /// The fault of a device that broke down; whether the host has the pages is not known then, and after
    /// [`restart`](Self::restart) it has not.
    pub async fn inflate(&self, pages: &[u32]) -> Result<(), DeviceFault> {
        self.send_pages(Queue::Inflate, pages).await
    }

    /// Tells the host that pages of the balloon will be used again; they may be, once this is done.
    ///
    /// # Errors
    /// As [`inflate`](Self::inflate).
    pub async fn deflate(&self, pages: &[u32]) -> Result<(), DeviceFault> {
        self.send_pages(Queue::Deflate, pages).await
    }

    async fn send_pages(&self, queue: Queue, pages: &[u32]) -> Result<(), DeviceFault> {
        let mut bytes = [0; PAGES_AT_ONCE * PFN_SIZE];
        let len = pages.len().min(PAGES_AT_ONCE) * PFN_SIZE;
        for (slot, page) in bytes.as_chunks_mut().0.iter_mut().zip(pages) {
            *slot = page.to_le_bytes();
        }
        self.turn(queue).await?;
        self.send(queue, |channel| channel.submit_bytes(&bytes[..len]))?;
        self.answered(queue).await
    }

    /// Gives the host statistics, and waits until it wants the next ones; or until it has none any more, as the device was reset.
    ///
    /// # Errors
    /// As [`inflate`](Self::inflate).
    pub async fn supply_statistics(&self, statistics: &[Stat]) -> Result<(), DeviceFault> {
        let bytes: Vec<u8> = statistics.iter().flat_map(Stat::encode).collect();
        self.turn(Queue::Stats).await?;
        self.send(Queue::Stats, |channel| channel.submit_bytes(&bytes))?;
        self.answered(Queue::Stats).await
    }

    /// Waits until something may be sent on a queue.
    async fn turn(&self, queue: Queue) -> Result<(), DeviceFault> {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            let is_held = state.holds_pages && queue != Queue::Stats;
            state.poll_idle(queue, is_held, cx)
        })
        .await
    }

    /// Waits until the device has returned what it has of a queue.
    async fn answered(&self, queue: Queue) -> Result<(), DeviceFault> {
        poll_fn(|cx| self.state.borrow_mut().poll_idle(queue, false, cx)).await
    }

    /// Sends what `submit` puts into the queue, which is idle.
    fn send(
        &self,
        queue: Queue,
        submit: impl FnOnce(&mut Channel<M>) -> Result<Notify, DeviceFault>,
    ) -> Result<(), DeviceFault> {
        let mut state = self.state.borrow_mut();
        let Some(channel) = state.channel(queue) else {
            return Ok(());
        };
        let index = channel.index;
        let sent = submit(channel);
        drop(state);
        match sent {
            Ok(notify) => {
                self.transport.notify(index, notify);
                Ok(())
            }
            Err(fault) => Err(self.broken(fault)),
        }
    }

    /// The device interrupted: takes answers and configuration changes, and wakes whom they concern.
    pub fn on_interrupt(&self) {
        let cause = self.transport.take_interrupt();
        if cause.config_change && self.transport.needs_reset() {
            self.broken(DeviceFault::NeedsReset);
        }
        let mut woken = WakerSet::new();
        let mut state = self.state.borrow_mut();
        if cause.config_change {
            state.has_news = true;
            woken.append(state.config_waiters.take());
        }
        let mut taken = Ok(());
        if cause.used_buffers {
            for channel in &mut state.channels {
                taken = taken.and(channel.take_used(&mut woken));
            }
        }
        drop(state);
        if let Err(fault) = taken {
            self.broken(fault);
        }
        woken.wake();
    }

    /// Records that the device cannot be used any more, and tells everybody.
    fn broken(&self, fault: DeviceFault) -> DeviceFault {
        let mut state = self.state.borrow_mut();
        // The first fault is the cause, what follows are consequences.
        let fault = *state.fault.get_or_insert(fault);
        let woken = state.all_waiters();
        drop(state);
        woken.wake();
        fault
    }
}

impl<R: Registers, M: DmaMemory + Clone> Relocate for BalloonDriver<R, M> {
    fn shared_memory(&self) -> Vec<Gpa> {
        starts(&self.state.borrow().areas())
    }

    async fn relocate(&self) -> Result<(), StartError> {
        self.state.borrow_mut().holds_pages = true;
        let _over = Finally(|| {
            let mut state = self.state.borrow_mut();
            state.holds_pages = false;
            let woken = state.page_waiters();
            drop(state);
            woken.wake();
        });
        // Whether the host has got pages that were on their way would not be known. Statistics it keeps until it wants others.
        self.answered(Queue::Inflate).await?;
        self.answered(Queue::Deflate).await?;
        let mut other = OtherMemory::like(&self.state.borrow().areas())?;
        let restarted = self.start_again(Some(&mut other));
        other.release();
        restarted
    }
}

impl<M: DmaMemory> State<M> {
    /// What the device reaches.
    fn areas(&self) -> Vec<&DmaArea<M>> {
        self.channels.iter().flat_map(Channel::areas).collect()
    }

    /// Whether the device has nothing of a queue, nor others who wait are held up, or who waits for that.
    fn poll_idle(
        &mut self,
        queue: Queue,
        is_held: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DeviceFault>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        match self.channel(queue) {
            Some(channel) if is_held || channel.is_busy() => {
                channel.waiters.add(cx.waker());
                Poll::Pending
            }
            // A queue that was not negotiated takes nothing and is never busy.
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<M> State<M> {
    fn channel(&mut self, queue: Queue) -> Option<&mut Channel<M>> {
        self.channels.iter_mut().find(|channel| channel.queue == queue)
    }

    fn all_waiters(&mut self) -> WakerSet {
        let mut all = self.config_waiters.take();
        all.append(self.page_waiters());
        all
    }

    /// Those who wait for a queue.
    fn page_waiters(&mut self) -> WakerSet {
        let mut all = WakerSet::new();
        for channel in &mut self.channels {
            all.append(channel.waiters.take());
        }
        all
    }
}
