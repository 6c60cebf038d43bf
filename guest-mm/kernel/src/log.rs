//! Messages on the serial console: `[seconds] text`, a line each, silent below the level of the command line.
//!
//! A line is put together first and written at once: on some hosts every port access costs 50 µs.

use crate::machine::{clock, serial};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

/// How important a message is: Linux's levels, those that are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Level {
    /// The guest goes on without something.
    Error = 3,
    /// Something is odd.
    Warning = 4,
    /// What the user asked for happens.
    Info = 6,
    /// How it happens.
    Debug = 7,
}

static LOG_LEVEL: AtomicU8 = AtomicU8::new(7);

/// From now on messages of `level` and above (less important) stay silent.
pub(crate) fn set_level(level: u8) {
    LOG_LEVEL.store(level, Ordering::Relaxed);
}

/// Writes a message; see [`log!`].
pub(crate) fn write(level: Level, message: fmt::Arguments<'_>) {
    if (level as u8) < LOG_LEVEL.load(Ordering::Relaxed) {
        // Lines are stamped in the order in which they appear.
        let mut writer = serial::Writer::lock();
        let now = clock::now();
        let mut line = Line::new();
        // What does not fit is cut off, which is all that can go wrong.
        let _ = write!(
            line,
            "[{:5}.{:06}] {message}",
            now / 1_000_000_000,
            now / 1_000 % 1_000_000
        );
        writer.write(line.end());
    }
}

/// Writes a message of the level [`Level`]`::$level`, formatted as by `format!`.
macro_rules! log {
    ($level:ident, $($message:tt)*) => {
        $crate::log::write($crate::log::Level::$level, format_args!($($message)*))
    };
}
pub(crate) use log;

/// A line being put together, without the heap.
pub(crate) struct Line {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Line {
    const CAPACITY: usize = 256;

    /// An empty line.
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; Self::CAPACITY],
            len: 0,
        }
    }

    /// The line, with its end.
    fn end(&mut self) -> &[u8] {
        let len = self.len.min(Self::CAPACITY - 1);
        self.bytes[len] = b'\n';
        &self.bytes[..=len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
