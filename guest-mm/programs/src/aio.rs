//! System calls for reads that go on while the program does: what programs and the manager share about them (Linux `io_setup`, `io_uring`).
//!
//! They are made as those for files ([`crate::files`]). A program has one *event ring*, memory that it shares with the manager: what has been read
//! appears there without a call, and no access to it ever finds a page missing. The *buffers* that it registers stay where they are until it
//! gives them up.

/// The calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum AioCall {
    /// `(events)`: makes the program's ring, with room for so many events, a power of 2 up to [`MOST_EVENTS`]; returns its address. Once.
    SetUp = 96,
    /// `(descriptor, address, bytes, offset)`: begins to read; returns the number of the read, which its event has. As many can be under way or not yet
    /// taken out of the ring as that has room for.
    Read = 97,
    /// `(events)`: returns when so many events in all have come since the ring was made.
    Wait = 98,
    /// `(address, bytes)`: the memory, whole pages of the program's own, stays where it is from now on, outside of what can be taken away. Reads of
    /// files that were opened with `DIRECT` go there without more ado.
    RegisterBuffer = 99,
    /// `()`: gives all registered buffers up, after what is under way has ended.
    UnregisterBuffers = 100,
}

/// Most events of a ring.
pub const MOST_EVENTS: u64 = 1024;

/// Byte of a ring at which the manager counts the events that have come.
pub const TAIL: u64 = 0;
/// Byte at which the program counts the events that it has taken out.
pub const HEAD: u64 = 64;
/// Byte at which the first event lies. Event number n lies at n modulo the size of the ring.
pub const FIRST_EVENT: u64 = 128;
/// Bytes of an event: [`Event`]'s words.
pub const EVENT_BYTES: u64 = 16;

/// What has become of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which.
    pub number: u64,
    /// What [`crate::files::FileCall::Read`] would have returned.
    pub result: u64,
}

/// Bytes of the ring for so many events, in whole pages.
pub const fn ring_bytes(events: u64) -> u64 {
    (FIRST_EVENT + events * EVENT_BYTES).next_multiple_of(4096)
}

impl AioCall {
    const ALL: [Self; 5] = [
        Self::SetUp,
        Self::Read,
        Self::Wait,
        Self::RegisterBuffer,
        Self::UnregisterBuffers,
    ];

    /// The call with that number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u64 == number)
    }
}

// An event does not cross the border of a page.
const _: () = assert!(4096_u64.is_multiple_of(EVENT_BYTES) && FIRST_EVENT.is_multiple_of(EVENT_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Call;
    use crate::files::FileCall;

    #[test]
    fn calls_for_reads_under_way_have_numbers_of_their_own() {
        for (number, call) in (96..).zip(AioCall::ALL) {
            assert_eq!(AioCall::from_number(number), Some(call));
            assert_eq!(Call::from_number(number), None);
            assert_eq!(FileCall::from_number(number), None);
        }
        assert_eq!(AioCall::from_number(101), None);
    }

    #[test]
    fn a_ring_has_whole_pages_for_its_events() {
        assert_eq!(
            (ring_bytes(1), ring_bytes(248), ring_bytes(249)),
            (4096, 4096, 8192)
        );
        assert_eq!(ring_bytes(MOST_EVENTS), 5 * 4096);
    }
}
