//! COM1, a 16550: written to, never read. The guest's console.
//!
//! Every port access of ring 3 may cost tens of microseconds, so bytes go out by the FIFO-full through the nucleus,
//! and callers hand over whole lines.

#![expect(unsafe_code, reason = "drives the serial port")]

use super::{nucleus, ports};
use guest_sync::{SpinGuard, SpinLock};

/// The transmitter's data register; the other registers follow it.
const COM1: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const LINE_STATUS: u16 = COM1 + 5;

/// Line status: the transmitter takes a FIFO's worth of bytes.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Bytes that fit the transmitter's FIFO (16550).
const FIFO_BYTES: usize = 16;
/// How often the line status is read before a byte is given up: a port without a device reads as all ones.
const PATIENCE: u32 = 100_000;

/// Sets 8 data bits, no parity, one stop bit, FIFOs on, no interrupts.
pub(crate) fn start() {
    for (register, value) in [(INTERRUPT_ENABLE, 0), (LINE_CONTROL, 3), (FIFO_CONTROL, 7)] {
        // SAFETY: a serial port cannot touch memory.
        unsafe { ports::write(register, value) };
    }
}

/// Whoever writes has this: lines of several CPUs do not mix. Nothing else is locked under it.
static LINE: SpinLock<()> = SpinLock::new(());

/// The right to write.
pub(crate) struct Writer {
    _line: Option<SpinGuard<'static, ()>>,
}

impl Writer {
    /// Waits for its turn.
    pub(crate) fn lock() -> Self {
        Self {
            _line: Some(LINE.lock()),
        }
    }

    /// For the end of the guest: does not wait long for another writer, who may never come to an end.
    pub(crate) fn lock_or_interrupt() -> Self {
        let line = (0..PATIENCE).find_map(|_| {
            core::hint::spin_loop();
            LINE.try_lock()
        });
        Self { _line: line }
    }

    /// Writes `bytes`, each newline as carriage return and newline.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        write_lines(bytes);
    }
}

fn write_lines(bytes: &[u8]) {
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => {
                write_raw(text);
                write_raw(b"\r\n");
            }
            None => write_raw(line),
        }
    }
}

fn write_raw(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO_BYTES) {
        let mut patience = PATIENCE;
        // SAFETY: reading the line status has no effect that anyone here relies on.
        while unsafe { ports::read(LINE_STATUS) } & TRANSMITTER_EMPTY == 0 && patience > 0 {
            patience -= 1;
        }
        // SAFETY: a serial port cannot touch memory.
        unsafe { nucleus::write_port_bytes(COM1, chunk) };
    }
}
