//! System calls for reads that go on meanwhile, and the program's side of an event ring.

#![expect(unsafe_code, reason = "touches memory by address")]

use crate::call::{enter, read_word, write_word};
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_programs::abi::Error;
use guest_programs::aio::{AioCall, EVENT_BYTES, Event, FIRST_EVENT, HEAD, TAIL};

fn call(number: AioCall, first: u64, second: u64, third: u64, fourth: u64) -> Result<u64, Error> {
    Error::check(enter(number as u64, [first, second, third, fourth]))
}

/// Has memory stay where it is, outside of what can be taken away.
pub(crate) fn register_buffer(address: u64, bytes: u64) -> Result<(), Error> {
    call(AioCall::RegisterBuffer, address, bytes, 0, 0).map(|_| ())
}

/// Lets all of that go where it likes again.
pub(crate) fn unregister_buffers() -> Result<(), Error> {
    call(AioCall::UnregisterBuffers, 0, 0, 0, 0).map(|_| ())
}

/// The program's event ring.
pub(crate) struct Ring {
    address: u64,
    room: u64,
    taken: u64,
}

impl Ring {
    /// Has one made.
    pub(crate) fn set_up(room: u64) -> Result<Self, Error> {
        let address = call(AioCall::SetUp, room, 0, 0, 0)?;
        Ok(Self {
            address,
            room,
            taken: 0,
        })
    }

    /// Where it is.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    /// Begins to read `(address, bytes)` from byte `offset` of a file on; the number of the read. The memory is not to be looked at until the
    /// event has come.
    pub(crate) fn read(&self, descriptor: u64, memory: (u64, u64), offset: u64) -> Result<u64, Error> {
        call(AioCall::Read, descriptor, memory.0, memory.1, offset)
    }

    /// Waits until so many events in all have come.
    pub(crate) fn wait(&self, events: u64) -> Result<(), Error> {
        call(AioCall::Wait, events, 0, 0, 0).map(|_| ())
    }

    /// Takes the next event out, if one has come. No call.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let tail = with_exposed_provenance_mut::<u64>(usize::try_from(self.address + TAIL).ok()?);
        // SAFETY: a word of the ring, which is mapped as long as the program lives; the manager stores to it atomically.
        let tail = unsafe { AtomicU64::from_ptr(tail) }.load(Ordering::Acquire);
        if tail == self.taken {
            return None;
        }
        let at = self.address + FIRST_EVENT + self.taken % self.room * EVENT_BYTES;
        let event = Event {
            number: read_word(at),
            result: read_word(at + 8),
        };
        self.taken += 1;
        write_word(self.address + HEAD, self.taken);
        Some(event)
    }

    /// Events that were taken out.
    pub(crate) const fn taken(&self) -> u64 {
        self.taken
    }
}
