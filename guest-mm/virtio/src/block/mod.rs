//! The disk driver (virtio 1.3 section 5.2): reads, writes and flushes, many under way at a time, none of them waited for
//! here.
//!
//! A request takes a token of the caller's type `T` in with [`submit`](BlockDriver::submit) and gives it back with the
//! result, in any order: [`completed`](BlockDriver::completed) looks, [`next`](BlockDriver::next) waits. Until then the
//! device may touch the request's memory, whatever becomes of those who wait; a device that breaks the rules keeps what
//! it has until it is reset ([`restart`](BlockDriver::restart)), and then every request comes back as
//! [`BlockError::Lost`].

mod request;
mod slots;
#[cfg(test)]
mod tests;

pub use request::{BlockError, Operation, Reason, Refused};
pub use virtio_wire::block::SECTOR_SIZE;

use crate::dma::{DmaArea, DmaMemory, Gpa};
use crate::fault::{DeviceFault, StartError};
use crate::queue::{self, Notify, Segment, VirtQueue};
use crate::relocate::{OtherMemory, starts};
use crate::transport::{Features, Registers, Setup, Transport};
use crate::wake::WakerSet;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll};
use request::{Pending, check, outcome};
use slots::Slots;
use virtio_wire::block::{QUEUE_REQUEST, feature, offset};
use virtio_wire::device_id;

/// Requests under way, at most.
pub const MAX_IN_FLIGHT: u16 = 64;
/// Descriptors: a request is one for its header, one for its status, and its data.
const QUEUE_SIZE: core::ops::RangeInclusive<u16> = 4..=256;

const FEATURES: Features = Features {
    supported: feature::SIZE_MAX | feature::SEG_MAX | feature::RO | feature::FLUSH,
    required: 0,
};

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in sectors of [`SECTOR_SIZE`] bytes.
    pub capacity_sectors: u64,
    /// Whether it can be written.
    pub access: Access,
    /// Whether writes may be lost before a flush; without, a flush is done at once.
    pub cache: Cache,
    /// Pieces of memory in one request, at most.
    pub max_segments: u16,
    /// Bytes of one such piece, at most.
    pub max_segment_len: u32,
}

/// Whether a disk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can be read only.
    ReadOnly,
    /// It can be read and written.
    ReadWrite,
}

/// When what was written stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Once it was flushed.
    Writeback,
    /// Once it was written.
    Writethrough,
}

/// What became of requests, since the driver was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads done.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Requests of any kind that failed.
    pub errors: u64,
}

/// A disk in use. As the memory driver it belongs to one CPU's executor.
#[derive(Debug)]
pub struct BlockDriver<R, M, T> {
    transport: Transport<R>,
    /// Never borrowed while the device is notified nor while a waker runs: both may lead back here.
    state: RefCell<State<M, T>>,
}

#[derive(Debug)]
struct State<M, T> {
    info: DiskInfo,
    shared: Shared<M, T>,
    /// Answered, and not taken yet.
    done: VecDeque<(T, Result<(), BlockError>)>,
    waiters: WakerSet,
    counters: Counters,
    fault: Option<DeviceFault>,
}

/// What the device reaches of the driver's.
#[derive(Debug)]
struct Shared<M, T> {
    queue: VirtQueue<M, Pending<T>>,
    slots: Slots<M>,
}

impl<M: DmaMemory, T> Shared<M, T> {
    fn areas(&self) -> [&DmaArea<M>; 2] {
        [self.queue.area(), self.slots.area()]
    }

    fn areas_mut(&mut self) -> [&mut DmaArea<M>; 2] {
        [self.queue.area_mut(), self.slots.area_mut()]
    }
}

impl<R: Registers, M: DmaMemory + Clone, T> BlockDriver<R, M, T> {
    /// Finds the disk behind `registers` and takes it into use.
    ///
    /// # Errors
    /// [`StartError`] when that fails at any point; the device is then marked FAILED.
    pub fn start(registers: R, memory: &M) -> Result<Self, StartError> {
        let transport = Transport::probe(registers, device_id::BLOCK)?;
        let state = transport.initialise(FEATURES, |setup| {
            let size = setup.queue_size(QUEUE_REQUEST, QUEUE_SIZE)?;
            let shared = Shared {
                queue: VirtQueue::new(memory.clone(), size)?,
                slots: Slots::new(memory, MAX_IN_FLIGHT)?,
            };
            setup.install(QUEUE_REQUEST, shared.queue.addresses())?;
            Ok::<_, StartError>(State {
                info: read_info(setup, size)?,
                shared,
                done: VecDeque::new(),
                waiters: WakerSet::new(),
                counters: Counters::default(),
                fault: None,
            })
        })?;
        let state = RefCell::new(state);
        Ok(Self { transport, state })
    }

    /// Resets the device and sets it up again, after a [`DeviceFault`]. What was under way comes back as lost.
    ///
    /// # Errors
    /// As [`start`](Self::start); restarting can be tried again.
    pub fn restart(&self) -> Result<(), StartError> {
        self.start_again(None)
    }

    /// Has the driver share other memory with the device: stops it (a reset), exchanges the memory, and sets it up again. What was
    /// under way comes back as lost, so this is best done when nothing is ([`in_flight`](Self::in_flight)).
    ///
    /// # Errors
    /// When there is no other memory, and nothing has changed; or as [`restart`](Self::restart), which is to be tried then.
    pub fn relocate(&self) -> Result<(), StartError> {
        let mut other = OtherMemory::like(&self.state.borrow().shared.areas())?;
        let restarted = self.start_again(Some(&mut other));
        other.release();
        restarted
    }

    /// Resets the device and sets it up again; with `other` memory, if there is some.
    fn start_again(&self, other: Option<&mut OtherMemory<M>>) -> Result<(), StartError> {
        let mut state = self.state.borrow_mut();
        // Until it is set up nobody is to use it.
        state.fault.get_or_insert(DeviceFault::NeedsReset);
        let restarted = self.transport.initialise(FEATURES, |setup: &Setup<'_, R>| {
            // The device has been reset: it has forgotten all requests, and their memory.
            for pending in state.shared.queue.reset() {
                state.end(pending, Err(BlockError::Lost));
            }
            if let Some(other) = other {
                other.exchange(&mut state.shared.areas_mut());
            }
            let size = state.shared.queue.addresses().size;
            setup.queue_size(QUEUE_REQUEST, size..=size)?;
            setup.install(QUEUE_REQUEST, state.shared.queue.addresses())?;
            state.info = read_info(setup, size)?;
            Ok::<_, StartError>(())
        });
        if restarted.is_ok() {
            state.fault = None;
        }
        let woken = state.waiters.take();
        drop(state);
        woken.wake();
        restarted
    }
}

/// What the device says it is like, with a queue of `size` entries.
fn read_info<R: Registers>(setup: &Setup<'_, R>, size: u16) -> Result<DiskInfo, StartError> {
    let has = |bit| setup.features() & bit != 0;
    let (capacity_sectors, seg_max, size_max) = setup.transport().read_config(|config| {
        let limit = |bit, at| {
            // 0 would be a device that takes nothing.
            if has(bit) {
                config.read32(at).max(1)
            } else {
                u32::MAX
            }
        };
        (
            config.read64(offset::CAPACITY),
            limit(feature::SEG_MAX, offset::SEG_MAX),
            limit(feature::SIZE_MAX, offset::SIZE_MAX),
        )
    })?;
    Ok(DiskInfo {
        capacity_sectors,
        access: if has(feature::RO) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        cache: if has(feature::FLUSH) {
            Cache::Writeback
        } else {
            Cache::Writethrough
        },
        max_segments: u16::try_from(seg_max).unwrap_or(u16::MAX).min(size - 2),
        max_segment_len: size_max,
    })
}

impl<R: Registers, M: DmaMemory, T> BlockDriver<R, M, T> {
    /// What the disk is like.
    pub fn info(&self) -> DiskInfo {
        self.state.borrow().info
    }

    /// What became of requests so far.
    pub fn counters(&self) -> Counters {
        self.state.borrow().counters
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> u16 {
        self.state.borrow().shared.queue.in_flight()
    }

    /// Where the areas begin that the driver shares with the device: the queue's, and that of headers and status bytes.
    pub fn shared_memory(&self) -> Vec<Gpa> {
        starts(&self.state.borrow().shared.areas())
    }

    /// Why the device cannot be used at present, if it cannot.
    pub fn fault(&self) -> Option<DeviceFault> {
        self.state.borrow().fault
    }

    /// Prepares a request: `data`, whole sectors in pieces, from or to those that begin at `sector`; nothing for a flush,
    /// which makes every write stay that has come back before it is submitted. The device sees it with the next
    /// [`commit`](Self::commit).
    ///
    /// # Errors
    /// [`Refused`] gives the token back; nothing has happened. With [`Reason::Full`] there is room again when another
    /// request has come back.
    pub fn submit(
        &self,
        operation: Operation,
        sector: u64,
        data: &[Segment],
        token: T,
    ) -> Result<(), Refused<T>> {
        let mut state = self.state.borrow_mut();
        if let Some(fault) = state.fault {
            let reason = Reason::Broken(fault);
            return Err(Refused { reason, token });
        }
        let len = match check(&state.info, operation, sector, data) {
            Ok(len) => len,
            Err(reason) => return Err(Refused { reason, token }),
        };
        if operation == Operation::Flush && state.info.cache == Cache::Writethrough {
            state.count(operation, len, Ok(()));
            state.done.push_back((token, Ok(())));
            let woken = state.waiters.take();
            drop(state);
            woken.wake();
            return Ok(());
        }
        state.enqueue(operation, sector, data, Pending::new(token, operation, len))
    }

    /// Shows the device what was submitted. One write to a register, for however many requests.
    pub fn commit(&self) {
        let notify = self.state.borrow_mut().shared.queue.publish();
        if notify == Notify::Needed {
            self.transport.notify(QUEUE_REQUEST, notify);
        }
    }

    /// A request that the device is done with, if there is one: its token and how it went.
    pub fn completed(&self) -> Option<(T, Result<(), BlockError>)> {
        let mut state = self.state.borrow_mut();
        if let Some(done) = state.done.pop_front() {
            return Some(done);
        }
        let taken = state.take_used();
        let done = state.done.pop_front();
        drop(state);
        if let Err(fault) = taken {
            self.broken(fault);
        }
        done
    }

    /// The same, for a task that is woken when there is one. Several may wait; each request goes to one of them.
    pub fn poll_completed(&self, cx: &mut Context<'_>) -> Poll<(T, Result<(), BlockError>)> {
        if let Some(done) = self.completed() {
            return Poll::Ready(done);
        }
        self.state.borrow_mut().waiters.add(cx.waker());
        Poll::Pending
    }

    /// Waits for a request that the device is done with.
    pub async fn next(&self) -> (T, Result<(), BlockError>) {
        poll_fn(|cx| self.poll_completed(cx)).await
    }

    /// Waits until the device breaks down: then it is time for [`restart`](Self::restart).
    pub async fn broken_down(&self) -> DeviceFault {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            if let Some(fault) = state.fault {
                return Poll::Ready(fault);
            }
            state.waiters.add(cx.waker());
            Poll::Pending
        })
        .await
    }

    /// The device interrupted: takes its answers, and wakes those who wait for them.
    pub fn on_interrupt(&self) {
        let cause = self.transport.take_interrupt();
        if cause.config_change && self.transport.needs_reset() {
            self.broken(DeviceFault::NeedsReset);
        }
        if !cause.used_buffers {
            return;
        }
        let mut state = self.state.borrow_mut();
        let taken = state.take_used();
        let woken = if state.done.is_empty() {
            WakerSet::new()
        } else {
            state.waiters.take()
        };
        drop(state);
        if let Err(fault) = taken {
            self.broken(fault);
        }
        woken.wake();
    }

    /// Records that the device cannot be used any more, and tells everybody. The first fault is the cause.
    fn broken(&self, fault: DeviceFault) {
        let mut state = self.state.borrow_mut();
        state.fault.get_or_insert(fault);
        let woken = state.waiters.take();
        drop(state);
        woken.wake();
    }
}

impl<M: DmaMemory, T> State<M, T> {
    /// Puts a request that was checked into the queue.
    fn enqueue(
        &mut self,
        operation: Operation,
        sector: u64,
        data: &[Segment],
        mut pending: Pending<T>,
    ) -> Result<(), Refused<T>> {
        let Some(slot) = self.shared.slots.take() else {
            let reason = Reason::Full;
            return Err(Refused {
                reason,
                token: pending.token,
            });
        };
        let [header, status] = self.shared.slots.prepare(&slot, operation, sector);
        pending.slot = Some(slot);
        let (mut readable, mut writable) = (Vec::from([header]), Vec::new());
        match operation {
            Operation::Write => readable.extend(data),
            Operation::Read => writable.extend(data),
            Operation::Flush => {}
        }
        writable.push(status);
        let Shared { queue, slots } = &mut self.shared;
        queue.submit(&readable, &writable, pending).map_err(|refused| {
            let reason = match &refused {
                queue::Refused::Full { .. } => Reason::Full,
                queue::Refused::Faulty { fault, .. } => Reason::Broken((*fault).into()),
            };
            let mut pending = refused.into_token();
            slots.give_back(pending.slot.take());
            Refused {
                reason,
                token: pending.token,
            }
        })
    }

    /// Moves what the device has used to those that are done.
    fn take_used(&mut self) -> Result<(), DeviceFault> {
        while let Some(used) = self.shared.queue.poll()? {
            let status = used
                .token
                .slot
                .as_ref()
                .map(|slot| self.shared.slots.status(slot));
            let result = outcome(&used.token, status, used.written);
            self.end(used.token, result);
        }
        Ok(())
    }

    fn end(&mut self, mut pending: Pending<T>, result: Result<(), BlockError>) {
        self.shared.slots.give_back(pending.slot.take());
        self.count(pending.operation, pending.len, result);
        self.done.push_back((pending.token, result));
    }

    fn count(&mut self, operation: Operation, len: u64, result: Result<(), BlockError>) {
        let counters = &mut self.counters;
        match (result, operation) {
            (Err(_), _) => counters.errors += 1,
            (Ok(()), Operation::Read) => {
                counters.reads += 1;
                counters.read_bytes += len;
            }
            (Ok(()), Operation::Write) => {
                counters.writes += 1;
                counters.written_bytes += len;
            }
            (Ok(()), Operation::Flush) => counters.flushes += 1,
        }
    }
}
