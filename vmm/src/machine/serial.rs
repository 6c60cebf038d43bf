//! COM1: a 16550 whose output goes to the terminal, a file or nowhere, and whose input comes from the terminal.

use std::convert::Infallible;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::input::InputLine;
use super::layout::COM1_GSI;
use crate::hv::{HvError, Partition};
use crate::terminal::OutputWriter;

/// Interrupt enable register.
const IER: u8 = 1;
const IER_RECEIVED_DATA: u8 = 1;
const IER_TRANSMITTER_EMPTY: u8 = 2;
/// Interrupt identification register.
const IIR: u8 = 2;
const IIR_CAUSE: u8 = 0x0F;
const IIR_NONE: u8 = 1;
const IIR_TRANSMITTER_EMPTY: u8 = 2;
const IIR_RECEIVED_DATA: u8 = 4;
/// Line control register; its highest bit turns the first two registers into the divisor of the rate.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 0x80;
/// Line status register.
const LSR: u8 = 5;
const LSR_DATA_READY: u8 = 1;

type Uart = Serial<LineTrigger, RoomSignal, OutputWriter>;

/// The serial port.
#[derive(Debug)]
pub(super) struct SerialPort {
    uart: Mutex<Uart>,
    output: OutputWriter,
    line: EventFd,
    room: EventFd,
}

impl SerialPort {
    /// A port that sends to `output`.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(output: OutputWriter) -> io::Result<Self> {
        let line = EventFd::new(libc::EFD_NONBLOCK)?;
        let room = EventFd::new(libc::EFD_NONBLOCK)?;
        let uart = uart(&line, &room, &output)?;
        Ok(Self {
            uart: Mutex::new(uart),
            output,
            line,
            room,
        })
    }

    /// Connects its interrupt line.
    ///
    /// # Errors
    /// KVM refuses the line.
    pub(super) fn connect(&self, partition: &Partition) -> Result<(), HvError> {
        partition.connect_interrupt(&self.line, COM1_GSI)
    }

    /// Back to its state at power-on; input that the guest has not read is gone. If no descriptors are left, the port
    /// stays as the guest has left it, and its next driver sets it up all the same.
    pub(super) fn reset(&self) {
        if let Ok(fresh) = uart(&self.line, &self.room, &self.output) {
            *self.lock() = fresh;
            // More input can be taken.
            let _ = self.room.write(1);
        }
    }

    /// The guest reads register `offset`, below 8.
    pub(super) fn read(&self, offset: u8) -> u8 {
        let mut uart = self.lock();
        let value = uart.read(offset);
        let banked = uart.read(LCR) & LCR_DLAB != 0;
        if offset == IIR && !banked {
            identify(&mut uart, value)
        } else {
            value
        }
    }

    /// The guest writes register `offset`, below 8. A vCPU waits here for a reader that is behind, and not with the
    /// port locked: the event loop hands it what is typed, the escape key among it.
    pub(super) fn write(&self, offset: u8, value: u8) {
        self.output.wait_for_room();
        // What could fail is the line or the output, and neither does.
        let _ = self.lock().write(offset, value);
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InputLine for SerialPort {
    fn receive(&self, bytes: &[u8]) -> usize {
        // In loop-back mode nothing is received; the bytes are gone, as on a real line.
        let mut uart = self.lock();
        if uart.fifo_capacity() == 0 {
            return 0;
        }
        uart.enqueue_raw_bytes(bytes)
            .map_or(0, |taken| if taken == 0 { bytes.len() } else { taken })
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

/// What the interrupt identification register reads as, when the crate's own register read `taken` and is clear now.
///
/// A 16550 announces data until the last byte of it is read. The crate announces it once: it forgets when this register or
/// one byte is read. Linux' driver reads at most 256 bytes, then looks here whether it is done; with input that comes as
/// fast as it is read, the rest would stay for ever (PC16550D, table IV; Linux, `serial8250_rx_chars`).
fn identify(uart: &mut Uart, taken: u8) -> u8 {
    let enabled = uart.read(IER);
    let data_waits = uart.read(LSR) & LSR_DATA_READY != 0 && enabled & IER_RECEIVED_DATA != 0;
    let transmitter_empty = taken & IIR_TRANSMITTER_EMPTY != 0 && enabled & IER_TRANSMITTER_EMPTY != 0;
    if data_waits && transmitter_empty {
        // Reading clears the lesser cause only if it is the one that is read: it is asserted anew.
        let _ = uart.write(IER, enabled);
    }
    let cause = match (data_waits, transmitter_empty) {
        (true, _) => IIR_RECEIVED_DATA,
        (false, true) => IIR_TRANSMITTER_EMPTY,
        (false, false) => IIR_NONE,
    };
    taken & !IIR_CAUSE | cause
}

/// A port as it is at power-on.
fn uart(line: &EventFd, room: &EventFd, output: &OutputWriter) -> io::Result<Uart> {
    let line = LineTrigger(line.try_clone()?);
    let room = RoomSignal(room.try_clone()?);
    Ok(Serial::with_events(line, room, output.clone()))
}

/// The interrupt line.
#[derive(Debug)]
struct LineTrigger(EventFd);

impl Trigger for LineTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // A counter that is full is an edge that is still under way.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Tells the event loop that more input can be taken.
#[derive(Debug)]
struct RoomSignal(EventFd);

impl SerialEvents for RoomSignal {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::terminal::{Output, Sink};

    fn port() -> SerialPort {
        SerialPort::new(Output::start(Sink::Nothing).unwrap().writer()).unwrap()
    }

    #[test]
    fn input_waits_for_room_and_is_told_of_it() {
        let port = port();
        assert_eq!(port.receive(&[b'a'; 100]), 64);
        assert_eq!(port.receive(b"b"), 0);
        assert!(port.room().read().is_err(), "nothing read yet");
        for _ in 0..64 {
            assert_eq!(port.read(0), b'a');
        }
        assert!(port.room().read().is_ok());
        assert_eq!(port.receive(b"b"), 1);
    }

    #[test]
    fn input_is_taken_while_the_guest_waits_for_a_reader_of_its_output() {
        let (_reader, writer) = io::pipe().unwrap();
        let output = Output::start(Sink::File(File::from(OwnedFd::from(writer)))).unwrap();
        let port = Arc::new(SerialPort::new(output.writer()).unwrap());
        let guest = {
            let port = Arc::clone(&port);
            // More than the pipe and the buffer together take, so that it never ends by itself.
            thread::spawn(move || (0..1_000_000).for_each(|_| port.write(0, b'x')))
        };
        while !output.writer().is_full() {
            thread::yield_now();
        }
        assert_eq!(port.receive(b"a"), 1);
        assert!(!guest.is_finished(), "a full buffer holds the guest back");
        output.finish();
        guest.join().unwrap();
    }

    #[test]
    fn data_is_announced_until_the_last_byte_of_it_is_read() {
        let port = port();
        port.write(IER, IER_RECEIVED_DATA);
        assert_eq!(port.receive(b"abc"), 3);
        for byte in *b"abc" {
            assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_RECEIVED_DATA);
            assert_eq!(
                port.read(IIR) & IIR_CAUSE,
                IIR_RECEIVED_DATA,
                "reading it took it away"
            );
            assert_eq!(port.read(0), byte);
        }
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_NONE);
    }

    #[test]
    fn an_empty_transmitter_is_announced_after_the_data_and_once() {
        let port = port();
        port.write(IER, IER_RECEIVED_DATA | IER_TRANSMITTER_EMPTY);
        assert_eq!(port.receive(b"a"), 1);
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_RECEIVED_DATA);
        assert_eq!(port.read(0), b'a');
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_TRANSMITTER_EMPTY);
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_NONE);
    }

    #[test]
    fn what_came_while_interrupts_were_off_is_announced_when_they_are_on_again() {
        let port = port();
        port.write(IER, IER_RECEIVED_DATA);
        port.write(IER, 0);
        assert_eq!(port.receive(b"a"), 1);
        assert!(port.line.read().is_err(), "an interrupt that was not wanted");
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_NONE);
        port.write(IER, IER_RECEIVED_DATA);
        assert!(port.line.read().is_ok(), "no interrupt");
        assert_eq!(port.read(IIR) & IIR_CAUSE, IIR_RECEIVED_DATA);
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        assert_eq!(port().read(5) & 0x60, 0x60);
    }
}
