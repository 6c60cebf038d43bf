//! The virtio-console driver for a single port (virtio 1.3 section 5.3): lines in, bytes out.
//!
//! Memory is bounded on both sides. Received bytes stay in the device's buffers until somebody reads them: a host
//! that sends faster than the guest reads finds no buffers and has to wait. A writer that finds all transmit
//! buffers with the device waits for one to come back; only then does the device have to interrupt for them.
//!
//! Its queues and buffers can be had elsewhere ([`Relocate`]): what was sent has been taken by the device before, and what came in stays.
//!
//! For the panic path there is [`EmergencyConsole`], which needs none of this.

mod emergency;
mod line;
mod port;
#[cfg(test)]
mod tests;

pub use emergency::EmergencyConsole;
pub use line::{LineTooLong, MAX_LINE};

use crate::dma::{DmaMemory, Gpa};
use crate::fault::{DeviceFault, StartError};
use crate::relocate::{Finally, OtherMemory, Relocate, starts};
use crate::transport::{Features, Registers, Setup, Transport};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll};
use port::Port;
use virtio_wire::console::{QUEUE_RECEIVE, QUEUE_TRANSMIT, feature};
use virtio_wire::device_id;

/// MULTIPORT is not among them: the first port is all there is.
const FEATURES: Features = Features {
    supported: feature::EMERG_WRITE,
    required: 0,
};

/// A console in use. Like [`MemDriver`](crate::mem::MemDriver) it belongs to one CPU's executor.
#[derive(Debug)]
pub struct ConsoleDriver<R, M> {
    transport: Transport<R>,
    /// Never borrowed while the device is notified nor while a waker runs: both may lead back here.
    port: RefCell<Port<M>>,
}

impl<R: Registers, M: DmaMemory + Clone> ConsoleDriver<R, M> {
    /// Finds the console behind `registers` and takes it into use, with queues and buffers (six pages in all) in
    /// `memory`.
    ///
    /// # Errors
    /// [`StartError`] when that fails at any point; the device is then marked FAILED.
    pub fn start(registers: R, memory: &M) -> Result<Self, StartError> {
        let transport = Transport::probe(registers, device_id::CONSOLE)?;
        let port = transport.initialise(FEATURES, |setup: &Setup<'_, R>| Port::set_up(setup, memory))?;
        let driver = Self {
            transport,
            port: RefCell::new(port),
        };
        driver.offer_receive_buffers();
        Ok(driver)
    }

    /// Resets the device and sets it up again, after a [`DeviceFault`]. What was on its way in either direction,
    /// and any part of a line, is lost.
    ///
    /// # Errors
    /// As [`start`](Self::start); restarting can be tried again.
    pub fn restart(&self) -> Result<(), StartError> {
        self.start_again(None)
    }

    /// Resets the device and sets it up again; with `other` memory, and what came in, if there is some.
    fn start_again(&self, other: Option<&mut OtherMemory<M>>) -> Result<(), StartError> {
        let mut port = self.port.borrow_mut();
        // Until both queues are there nobody is to use them.
        port.fail(DeviceFault::NeedsReset);
        let restarted = self.transport.initialise(FEATURES, |setup: &Setup<'_, R>| {
            match other {
                Some(other) => port.exchange(other),
                None => port.forget(),
            }
            port.set_up_again(setup)
        });
        if restarted.is_ok() {
            port.recover();
        }
        let woken = port.waiters();
        drop(port);
        self.offer_receive_buffers();
        woken.wake();
        restarted
    }

    /// The next line from the host, without its newline. One task at a time may wait.
    ///
    /// # Errors
    /// The fault, when the device broke down; nothing comes in any more before [`restart`](Self::restart).
    pub async fn receive_line(&self) -> Result<Result<Vec<u8>, LineTooLong>, DeviceFault> {
        poll_fn(|cx| self.poll_line(cx)).await
    }

    fn poll_line(&self, cx: &mut Context<'_>) -> Poll<Result<Result<Vec<u8>, LineTooLong>, DeviceFault>> {
        let mut port = self.port.borrow_mut();
        let line = port.poll_line(cx);
        drop(port);
        // Buffers that were read to the end go back to the device, all with one notification.
        self.offer_receive_buffers();
        line
    }

    fn offer_receive_buffers(&self) {
        let notify = self.port.borrow_mut().offer_receive_buffers();
        self.transport.notify(QUEUE_RECEIVE, notify);
    }

    /// Sends `bytes`, waiting for room as often as it takes; done when the device has been given the last of
    /// them. Two tasks that send at the same time have their bytes mixed, in pieces of at most a page.
    ///
    /// # Errors
    /// The fault, when the device broke down; some of the bytes may have gone out.
    pub async fn transmit(&self, bytes: &[u8]) -> Result<(), DeviceFault> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = poll_fn(|cx| self.poll_transmit(cx, rest)).await?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Gives the device as much of `bytes` as there are buffers for, all with one notification. Returns how much.
    fn poll_transmit(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, DeviceFault>> {
        let mut port = self.port.borrow_mut();
        let (sent, notify) = match port.poll_transmit(cx, bytes) {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
            Poll::Pending => return Poll::Pending,
        };
        drop(port);
        self.transport.notify(QUEUE_TRANSMIT, notify);
        Poll::Ready(Ok(sent))
    }

    /// The device interrupted: takes what came in and what went out, and wakes whom it concerns. Two register
    /// accesses, and a third when the configuration changed.
    pub fn on_interrupt(&self) {
        let cause = self.transport.take_interrupt();
        let needs_reset = cause.config_change && self.transport.needs_reset();
        let mut port = self.port.borrow_mut();
        if needs_reset {
            port.fail(DeviceFault::NeedsReset);
        } else if cause.used_buffers {
            port.take_used();
        }
        let woken = port.ready_waiters();
        drop(port);
        woken.wake();
    }
}

impl<R: Registers, M: DmaMemory + Clone> Relocate for ConsoleDriver<R, M> {
    fn shared_memory(&self) -> Vec<Gpa> {
        starts(&self.port.borrow().areas())
    }

    async fn relocate(&self) -> Result<(), StartError> {
        self.port.borrow_mut().hold_writers();
        let _over = Finally(|| {
            let woken = self.port.borrow_mut().let_writers_go();
            woken.wake();
        });
        // A device that is reset may or may not have taken what was on its way.
        poll_fn(|cx| self.port.borrow_mut().poll_all_sent(cx)).await?;
        let mut other = OtherMemory::like(&self.port.borrow().areas())?;
        let restarted = self.start_again(Some(&mut other));
        other.release();
        restarted
    }
}
