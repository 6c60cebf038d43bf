//! The two queues of a console port and their buffers, without the register accesses.

use super::line::{LineAssembler, LineTooLong};
use crate::dma::{DmaArea, DmaMemory, PAGE_SIZE};
use crate::fault::{DeviceFault, StartError};
use crate::queue::{Notify, Segment, Used, UsedInterrupts, VirtQueue};
use crate::relocate::OtherMemory;
use crate::transport::{Registers, Setup};
use crate::wake::WakerSet;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Context, Poll};
use virtio_wire::console::{QUEUE_RECEIVE, QUEUE_TRANSMIT};

/// Receive buffers, and transmit buffers: as many as descriptors in their queues.
const BUFFERS: u16 = 4;
/// Bytes in a receive buffer: a command line fits with room to spare.
const RECEIVE_BYTES: u16 = 1024;
/// Bytes in a transmit buffer. Longer texts travel in several.
const TRANSMIT_BYTES: u16 = 4096;
const _: () = assert!(TRANSMIT_BYTES as usize == PAGE_SIZE);
const _: () = assert!(BUFFERS.is_power_of_two());

/// One of the equal buffers that an area is cut into. The value is the right to use it: it is either in a list of
/// the driver or, as a token, with the request that the device works on.
#[derive(Debug, PartialEq, Eq)]
struct Buffer(u16);

impl Buffer {
    fn all() -> impl Iterator<Item = Self> {
        (0..BUFFERS).map(Buffer)
    }

    fn offset(&self, bytes: u16) -> usize {
        usize::from(self.0) * usize::from(bytes)
    }
}

/// A queue and the buffers that travel through it.
#[derive(Debug)]
struct Lane<M> {
    queue: VirtQueue<M, Buffer>,
    area: DmaArea<M>,
    idle: Vec<Buffer>,
    /// Bytes in each buffer.
    bytes: u16,
}

/// A buffer with bytes from the host, of which the first `taken` were read.
#[derive(Debug)]
struct Received {
    buffer: Buffer,
    taken: usize,
    len: usize,
}

/// The port; the driver shares it between tasks and interrupts.
#[derive(Debug)]
pub(super) struct Port<M> {
    receive: Lane<M>,
    transmit: Lane<M>,
    received: VecDeque<Received>,
    line: LineAssembler,
    reader: WakerSet,
    writers: WakerSet,
    /// The memory is about to be exchanged: writers wait.
    holds_writers: bool,
    fault: Option<DeviceFault>,
}

impl<M: DmaMemory + Clone> Port<M> {
    pub(super) fn set_up<R: Registers>(setup: &Setup<'_, R>, memory: &M) -> Result<Self, StartError> {
        let receive = Lane::set_up(setup, QUEUE_RECEIVE, RECEIVE_BYTES, memory)?;
        let mut transmit = Lane::set_up(setup, QUEUE_TRANSMIT, TRANSMIT_BYTES, memory)?;
        transmit.queue.set_used_interrupts(UsedInterrupts::Unwanted);
        Ok(Self {
            receive,
            transmit,
            received: VecDeque::with_capacity(usize::from(BUFFERS)),
            line: LineAssembler::new(),
            reader: WakerSet::new(),
            writers: WakerSet::new(),
            holds_writers: false,
            fault: None,
        })
    }

    /// The device has just been reset, and is to have other memory. What it had delivered stays.
    pub(super) fn exchange(&mut self, other: &mut OtherMemory<M>) {
        let [first, second] = self.receive.areas_mut();
        let [third, fourth] = self.transmit.areas_mut();
        other.exchange(&mut [first, second, third, fourth]);
        self.take_used();
    }

    /// The device has just been reset, and what came in is not to be trusted.
    pub(super) fn forget(&mut self) {
        self.receive
            .idle
            .extend(self.received.drain(..).map(|received| received.buffer));
        self.line = LineAssembler::new();
    }

    /// The device has just been reset: it has forgotten the queues.
    pub(super) fn set_up_again<R: Registers>(&mut self, setup: &Setup<'_, R>) -> Result<(), StartError> {
        self.receive.set_up_again(setup, QUEUE_RECEIVE)?;
        self.transmit.set_up_again(setup, QUEUE_TRANSMIT)?;
        self.transmit.queue.set_used_interrupts(UsedInterrupts::Unwanted);
        Ok(())
    }
}

impl<M: DmaMemory> Port<M> {
    /// What the device reaches.
    pub(super) fn areas(&self) -> [&DmaArea<M>; 4] {
        let [first, second] = self.receive.areas();
        let [third, fourth] = self.transmit.areas();
        [first, second, third, fourth]
    }

    /// The next line that is complete, or who waits for it.
    pub(super) fn poll_line(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Result<Vec<u8>, LineTooLong>, DeviceFault>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        while let Some(received) = self.received.pop_front() {
            if let Some(line) = self.read(received) {
                return Poll::Ready(Ok(line));
            }
        }
        self.reader.add(cx.waker());
        Poll::Pending
    }

    /// Reads a buffer up to the end of a line or its own; it goes back to the front of the received ones, or to
    /// the idle ones.
    fn read(&mut self, mut received: Received) -> Option<Result<Vec<u8>, LineTooLong>> {
        let lane = &mut self.receive;
        let mut bytes = [0; RECEIVE_BYTES as usize];
        let bytes = &mut bytes[received.taken..received.len];
        let offset = received.buffer.offset(lane.bytes) + received.taken;
        lane.area
            .memory()
            .read_bytes(lane.area.at(offset, bytes.len()), bytes);
        for &byte in &*bytes {
            received.taken += 1;
            if let Some(line) = self.line.push(byte) {
                self.received.push_front(received);
                return Some(line);
            }
        }
        lane.idle.push(received.buffer);
        None
    }

    /// Gives the device every idle receive buffer.
    pub(super) fn offer_receive_buffers(&mut self) -> Notify {
        if self.fault.is_some() {
            return Notify::NotNeeded;
        }
        let lane = &mut self.receive;
        while let Some(buffer) = lane.idle.pop() {
            let segment = lane.segment(&buffer, lane.bytes);
            if let Err(refused) = lane.queue.submit(&[], &[segment], buffer) {
                // A fault met in `poll`: the buffer is offered again after the restart.
                lane.idle.push(refused.into_token());
                break;
            }
        }
        lane.queue.publish()
    }

    /// Puts as much of `bytes` as possible into idle buffers and those into the queue.
    pub(super) fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<(usize, Notify), DeviceFault>> {
        if !self.holds_writers {
            self.make_room();
        }
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        if self.transmit.idle.is_empty() || self.holds_writers {
            self.writers.add(cx.waker());
            return Poll::Pending;
        }
        let lane = &mut self.transmit;
        let mut sent = 0;
        for piece in bytes.chunks(usize::from(lane.bytes)) {
            let Some(buffer) = lane.idle.pop() else {
                break;
            };
            lane.area
                .memory()
                .write_bytes(lane.area.at(buffer.offset(lane.bytes), piece.len()), piece);
            // A piece is at most `lane.bytes` long.
            let len = u16::try_from(piece.len()).unwrap_or(lane.bytes);
            let segment = lane.segment(&buffer, len);
            if let Err(refused) = lane.queue.submit(&[segment], &[], buffer) {
                lane.idle.push(refused.into_token());
                break;
            }
            sent += piece.len();
        }
        Poll::Ready(Ok((sent, lane.queue.publish())))
    }

    /// Nothing is sent from here on.
    pub(super) fn hold_writers(&mut self) {
        self.holds_writers = true;
    }

    /// Something may be sent again, by those who are returned.
    pub(super) fn let_writers_go(&mut self) -> WakerSet {
        self.holds_writers = false;
        self.writers.take()
    }

    /// Whether the device has taken all that was sent, or who waits for that.
    pub(super) fn poll_all_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DeviceFault>> {
        self.take_transmitted();
        if self.transmit.queue.in_flight() > 0 {
            self.transmit.queue.set_used_interrupts(UsedInterrupts::Wanted);
            // The last may have come back just before the device read our wish.
            self.take_transmitted();
        }
        match self.fault {
            Some(fault) => Poll::Ready(Err(fault)),
            None if self.transmit.queue.in_flight() == 0 => Poll::Ready(Ok(())),
            None => {
                self.writers.add(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Looks for transmit buffers that came back, and asks for an interrupt only if there is still none.
    fn make_room(&mut self) {
        if !self.transmit.idle.is_empty() {
            return;
        }
        self.take_transmitted();
        if self.transmit.idle.is_empty() {
            self.transmit.queue.set_used_interrupts(UsedInterrupts::Wanted);
            // One may have come back just before the device read our wish.
            self.take_transmitted();
        }
        if !self.transmit.idle.is_empty() {
            self.transmit.queue.set_used_interrupts(UsedInterrupts::Unwanted);
        }
    }

    /// Takes what the device has used in both queues.
    pub(super) fn take_used(&mut self) {
        self.take_transmitted();
        loop {
            match self.receive.queue.poll() {
                Ok(None) => break,
                // `poll` has checked `written` against the buffer's size.
                Ok(Some(Used {
                    token: buffer,
                    written,
                })) => {
                    let len = usize::try_from(written).unwrap_or(usize::from(RECEIVE_BYTES));
                    self.received.push_back(Received {
                        buffer,
                        taken: 0,
                        len,
                    });
                }
                Err(fault) => return self.fail(fault.into()),
            }
        }
    }

    fn take_transmitted(&mut self) {
        loop {
            match self.transmit.queue.poll() {
                Ok(None) => break,
                Ok(Some(used)) => self.transmit.idle.push(used.token),
                Err(fault) => return self.fail(fault.into()),
            }
        }
    }

    /// Records that the device cannot be used any more; the first reason counts.
    pub(super) fn fail(&mut self, fault: DeviceFault) {
        self.fault.get_or_insert(fault);
    }

    /// The device was started again.
    pub(super) fn recover(&mut self) {
        self.fault = None;
    }

    /// Those who wait for something that is there now.
    pub(super) fn ready_waiters(&mut self) -> WakerSet {
        if self.fault.is_some() {
            return self.waiters();
        }
        let mut woken = WakerSet::new();
        if !self.received.is_empty() {
            woken.append(self.reader.take());
        }
        if !self.transmit.idle.is_empty() {
            woken.append(self.writers.take());
        }
        woken
    }

    /// Everybody who waits.
    pub(super) fn waiters(&mut self) -> WakerSet {
        let mut all = self.reader.take();
        all.append(self.writers.take());
        all
    }
}

impl<M: DmaMemory + Clone> Lane<M> {
    fn set_up<R: Registers>(
        setup: &Setup<'_, R>,
        index: u16,
        bytes: u16,
        memory: &M,
    ) -> Result<Self, StartError> {
        let size = setup.queue_size(index, BUFFERS..=BUFFERS)?;
        let queue = VirtQueue::new(memory.clone(), size)?;
        let area = DmaArea::allocate(memory.clone(), usize::from(BUFFERS) * usize::from(bytes))?;
        setup.install(index, queue.addresses())?;
        Ok(Self {
            queue,
            area,
            idle: Buffer::all().collect(),
            bytes,
        })
    }

    fn set_up_again<R: Registers>(&mut self, setup: &Setup<'_, R>, index: u16) -> Result<(), StartError> {
        self.idle.extend(self.queue.reset());
        setup.queue_size(index, BUFFERS..=BUFFERS)?;
        Ok(setup.install(index, self.queue.addresses())?)
    }
}

impl<M: DmaMemory> Lane<M> {
    fn areas(&self) -> [&DmaArea<M>; 2] {
        [self.queue.area(), &self.area]
    }

    fn areas_mut(&mut self) -> [&mut DmaArea<M>; 2] {
        [self.queue.area_mut(), &mut self.area]
    }

    fn segment(&self, buffer: &Buffer, len: u16) -> Segment {
        let start = self.area.at(buffer.offset(self.bytes), usize::from(len));
        Segment {
            start,
            len: u32::from(len),
        }
    }
}
