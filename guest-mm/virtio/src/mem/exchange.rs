//! One request and its answer: the states an exchange with the device goes through, and the future that a task
//! awaits meanwhile.

use super::{MemDriver, RequestError, State};
use crate::dma::DmaMemory;
use crate::fault::DeviceFault;
use crate::queue::{Notify, Refused, Segment};
use crate::transport::Registers;
use crate::wake::WakerSet;
use core::pin::Pin;
use core::task::{Context, Poll};
use virtio_wire::mem::{QUEUE_REQUEST, Request, Response};

/// Where the response lies in the buffers, behind the request; a cache line away, since the other side writes it.
const RESPONSE_OFFSET: usize = 64;
const _: () = assert!(Request::SIZE <= RESPONSE_OFFSET);

/// Bytes of DMA memory that one exchange takes.
pub(super) const BUFFER_BYTES: usize = RESPONSE_OFFSET + Response::SIZE;

#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const REQUEST_LEN: u32 = Request::SIZE as u32;
#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const RESPONSE_LEN: u32 = Response::SIZE as u32;

/// Distinguishes an exchange from those before it.
type Number = u64;

/// What goes on between driver and device, and the number of the last request that was sent.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    phase: Phase,
    number: Number,
}

#[derive(Debug, Default)]
enum Phase {
    /// Nothing: the next request may be sent.
    #[default]
    Idle,
    /// The device has the request, and a task waits for the answer.
    Sent { waiter: WakerSet },
    /// The device has the request, but its task is gone: the answer will be dropped.
    Abandoned,
    /// The answer is there, its task has not fetched it yet.
    Answered(Response),
}

impl Exchange {
    /// The device was reset: it will never answer.
    pub(super) fn interrupt(&mut self) {
        self.phase = Phase::Idle;
    }

    pub(super) fn take_waiter(&mut self) -> WakerSet {
        match &mut self.phase {
            Phase::Sent { waiter } => waiter.take(),
            Phase::Idle | Phase::Abandoned | Phase::Answered(_) => WakerSet::new(),
        }
    }
}

impl<M: DmaMemory> State<M> {
    /// Writes `request` to the buffers and shows it to the device.
    fn send(&mut self, request: Request) -> Result<Notify, RequestError> {
        let request_at = self.buffers.at(0, Request::SIZE);
        let response_at = self.buffers.at(RESPONSE_OFFSET, Response::SIZE);
        let memory = self.buffers.memory();
        memory.write_bytes(request_at, &request.encode());
        // No response: a device that only claims to have answered is found out.
        memory.write_bytes(response_at, &[0xff; Response::SIZE]);
        let readable = Segment {
            start: request_at,
            len: REQUEST_LEN,
        };
        let writable = Segment {
            start: response_at,
            len: RESPONSE_LEN,
        };
        match self.queue.submit(&[readable], &[writable], ()) {
            Ok(()) => {}
            Err(Refused::Faulty { fault, .. }) => return Err(RequestError::Device(fault.into())),
            // Not reached: the queue has room for one request, and there is none.
            Err(Refused::Full { .. }) => return Err(RequestError::Busy),
        }
        self.exchange.number += 1;
        self.exchange.phase = Phase::Sent {
            waiter: WakerSet::new(),
        };
        Ok(self.queue.publish())
    }

    /// Takes the answer out of the queue, if it is there. `woken` gets those who are to be woken, whether the
    /// answer was a good one or not.
    pub(super) fn take_response(&mut self, woken: &mut WakerSet) -> Result<(), DeviceFault> {
        while let Some(used) = self.queue.poll()? {
            match core::mem::take(&mut self.exchange.phase) {
                Phase::Sent { waiter } => {
                    woken.append(waiter);
                    self.exchange.phase = Phase::Answered(self.response(used.written)?);
                }
                Phase::Idle | Phase::Abandoned | Phase::Answered(_) => woken.append(self.turn.take()),
            }
            woken.append(self.movers.take());
        }
        Ok(())
    }

    /// Whether the device has no request, or who waits for that.
    pub(super) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DeviceFault>> {
        match self.fault {
            Some(fault) => Poll::Ready(Err(fault)),
            None if self.queue.in_flight() == 0 => Poll::Ready(Ok(())),
            None => {
                self.movers.add(cx.waker());
                Poll::Pending
            }
        }
    }

    /// The response of the device, which says it wrote `written` bytes of it.
    fn response(&self, written: u32) -> Result<Response, DeviceFault> {
        if written < RESPONSE_LEN {
            return Err(DeviceFault::ShortResponse { written });
        }
        let mut bytes = [0; Response::SIZE];
        self.buffers
            .memory()
            .read_bytes(self.buffers.at(RESPONSE_OFFSET, Response::SIZE), &mut bytes);
        Response::decode(&bytes).map_err(DeviceFault::UnknownResponse)
    }
}

/// A request on its way, from waiting for its turn to the answer. Dropped early, it leaves the request with the
/// device and lets the next one wait for the answer to come in.
#[derive(Debug)]
pub(super) struct Transaction<'a, R, M> {
    driver: &'a MemDriver<R, M>,
    request: Request,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Sent(Number),
    Done,
}

impl<'a, R, M> Transaction<'a, R, M> {
    pub(super) fn new(driver: &'a MemDriver<R, M>, request: Request) -> Self {
        Self {
            driver,
            request,
            stage: Stage::Waiting,
        }
    }
}

impl<R: Registers, M: DmaMemory> Future for Transaction<'_, R, M> {
    type Output = Result<Response, RequestError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.stage == Stage::Waiting {
            match self.try_send(cx) {
                Poll::Ready(Ok(notify)) => self.driver.transport.notify(QUEUE_REQUEST, notify),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.fetch(cx)
    }
}

impl<R, M: DmaMemory> Transaction<'_, R, M> {
    fn try_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Notify, RequestError>> {
        let state = &mut *self.driver.state.borrow_mut();
        if let Some(fault) = state.fault {
            self.stage = Stage::Done;
            return Poll::Ready(Err(RequestError::Device(fault)));
        }
        if state.holds_requests || !matches!(state.exchange.phase, Phase::Idle) {
            state.turn.add(cx.waker());
            return Poll::Pending;
        }
        let sent = state.send(self.request);
        self.stage = match sent {
            Ok(_) => Stage::Sent(state.exchange.number),
            Err(_) => Stage::Done,
        };
        Poll::Ready(sent)
    }

    fn fetch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, RequestError>> {
        let mut state = self.driver.state.borrow_mut();
        let is_ours = self.stage == Stage::Sent(state.exchange.number);
        let answer = match (state.fault, &mut state.exchange.phase) {
            (Some(fault), _) => Err(RequestError::Device(fault)),
            (None, Phase::Sent { waiter }) if is_ours => {
                waiter.add(cx.waker());
                return Poll::Pending;
            }
            (None, Phase::Answered(response)) if is_ours => Ok(*response),
            (None, _) => Err(RequestError::Interrupted),
        };
        self.stage = Stage::Done;
        let woken = if is_ours {
            state.next_turn()
        } else {
            WakerSet::new()
        };
        drop(state);
        woken.wake();
        Poll::Ready(answer)
    }
}

impl<M> State<M> {
    /// The exchange is over: whoever waits for a turn may try.
    fn next_turn(&mut self) -> WakerSet {
        self.exchange.phase = Phase::Idle;
        self.turn.take()
    }
}

impl<R, M> Drop for Transaction<'_, R, M> {
    fn drop(&mut self) {
        let mut state = self.driver.state.borrow_mut();
        if self.stage != Stage::Sent(state.exchange.number) {
            return;
        }
        let woken = match state.exchange.phase {
            Phase::Answered(_) => state.next_turn(),
            Phase::Sent { .. } => {
                state.exchange.phase = Phase::Abandoned;
                WakerSet::new()
            }
            Phase::Idle | Phase::Abandoned => WakerSet::new(),
        };
        drop(state);
        woken.wake();
    }
}
