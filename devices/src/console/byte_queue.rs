//! A bounded queue of bytes between the host and the guest.

use std::collections::VecDeque;

/// Bytes in order, never more than the limit.
#[derive(Debug)]
pub(super) struct ByteQueue {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl ByteQueue {
    pub(super) fn new(limit: usize) -> ByteQueue {
        ByteQueue {
            bytes: VecDeque::new(),
            limit,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Number of bytes there is room for.
    pub(super) fn room(&self) -> usize {
        self.limit - self.bytes.len()
    }

    /// Appends as much as there is room for; returns how much that was.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.bytes.extend(&bytes[..taken]);
        taken
    }

    /// Appends one byte and, if there is no room, drops the oldest for it.
    pub(super) fn push_over(&mut self, byte: u8) {
        if self.room() == 0 {
            self.bytes.pop_front();
        }
        self.push(&[byte]);
    }

    /// Copies the oldest bytes without taking them; returns how many there were.
    pub(super) fn peek(&self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.bytes.len());
        for (to, from) in into.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        len
    }

    /// Takes away the `len` oldest bytes, or all if there are fewer.
    pub(super) fn discard(&mut self, len: usize) {
        self.bytes.drain(..len.min(self.bytes.len()));
    }

    /// Takes the `len` oldest bytes, or all if there are fewer.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        self.bytes.drain(..len.min(self.bytes.len())).collect()
    }

    /// All bytes, from the oldest on.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let mut queue = ByteQueue::new(4);
        assert_eq!(queue.push(b"abc"), 3);
        assert_eq!(queue.push(b"def"), 1);
        assert_eq!(queue.room(), 0);
        assert_eq!(queue.take(9), b"abcd");
    }

    #[test]
    fn a_byte_pushed_over_drops_the_oldest() {
        let mut queue = ByteQueue::new(3);
        b"abcde".iter().for_each(|&byte| queue.push_over(byte));
        assert_eq!(queue.to_vec(), b"cde");
    }

    #[test]
    fn peeked_bytes_stay_until_they_are_discarded() {
        let mut queue = ByteQueue::new(8);
        queue.push(b"abcd");
        let mut seen = [0; 3];
        assert_eq!(queue.peek(&mut seen), 3);
        assert_eq!(&seen, b"abc");
        queue.discard(3);
        assert_eq!(queue.to_vec(), b"d");
        assert_eq!(queue.len(), 1);
    }
}
