//! Bytes as values: each reader takes what it needs from the front, and zeros once there is nothing left.
//!
//! Where a plain number would hardly ever mean anything (an address, a length), a byte chooses among kinds of values that
//! lie where faults are: in rings, in buffers, at the ends of memory, beyond the address space.

use crate::guest::{BLOCKS, BUFFERS, BUFFERS_SIZE, HIGH, HIGH_SIZE, LOW_SIZE, RINGS, RINGS_SIZE};

/// The rest of a fuzzer's input.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of an input.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Up to `max` bytes, their number first. `max` is 255 at most.
    pub fn bytes(&mut self, max: u8) -> Vec<u8> {
        let len = usize::from(self.u8()) % (usize::from(max) + 1);
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes.to_vec()
    }

    /// A guest-physical address, good or bad.
    pub fn gpa(&mut self) -> u64 {
        match self.u8() % 8 {
            0 | 1 => BUFFERS + u64::from(self.u16()) % BUFFERS_SIZE,
            2 => HIGH + u64::from(self.u16()) * 16 % HIGH_SIZE,
            3 => HIGH + u64::from(self.u32()) % HIGH_SIZE,
            4 => {
                let borders = [
                    0,
                    LOW_SIZE,
                    HIGH,
                    BLOCKS,
                    HIGH + HIGH_SIZE,
                    RINGS,
                    BUFFERS,
                    1 << 32,
                ];
                let border = borders[usize::from(self.u8() % 8)];
                border.wrapping_add(u64::from(self.u8())).wrapping_sub(64)
            }
            5 => RINGS + u64::from(self.u16()) % RINGS_SIZE,
            6 => self.u64(),
            _ => u64::MAX - u64::from(self.u16()),
        }
    }

    /// Length of a buffer, sensible or huge.
    pub fn len(&mut self) -> u32 {
        match self.u8() % 8 {
            0 => 0,
            1..=3 => u32::from(self.u8()),
            4 => u32::from(self.u16()),
            5 => 4096 * u32::from(self.u8()),
            6 => u32::MAX - u32::from(self.u8()),
            _ => self.u32(),
        }
    }

    /// Value of a register: small, a status, half an address, anything.
    pub fn register_value(&mut self) -> u32 {
        match self.u8() % 6 {
            0 | 1 => u32::from(self.u8()),
            2 => [0, 1, 3, 11, 15, 0x40, 0x80, 0xf][usize::from(self.u8() % 8)],
            3 => low_half(self.gpa()),
            4 => 1 << (self.u8() % 32),
            _ => self.u32(),
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        bytes[..len].copy_from_slice(taken);
        self.rest = rest;
        bytes
    }
}

/// Bits 0 to 31.
pub(crate) fn low_half(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("32 bits were kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_the_front_and_are_zero_at_the_end() {
        let mut input = Input::new(&[1, 2, 3, 0, 9]);
        assert_eq!(input.u8(), 1);
        assert_eq!(input.u16(), 0x0302);
        assert_eq!(input.u32(), 0x0900);
        assert!(input.is_empty());
        assert_eq!(input.u64(), 0);
        assert_eq!(input.bytes(9), []);
    }

    #[test]
    fn a_byte_string_is_no_longer_than_its_limit_and_than_the_input() {
        assert_eq!(Input::new(&[5, 7, 7, 7, 7, 7]).bytes(3), [7]);
        assert_eq!(Input::new(&[200, 7, 7]).bytes(255), [7, 7]);
    }
}
