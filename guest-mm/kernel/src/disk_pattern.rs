//! What the check of a scratch disk writes, and in which order: every word of the disk is different from all others, so that a
//! piece that ends in another's place is wrong.

use alloc::vec::Vec;

/// Sectors of 512 bytes in a piece.
pub const PIECE_SECTORS: u64 = 64;
/// Bytes in a piece.
pub const PIECE_BYTES: usize = 32 << 10;
const _: () = assert!(PIECE_BYTES as u64 == 512 * PIECE_SECTORS);

/// The words of a piece: 8 bytes each, little-endian, their numbers on the disk times an odd constant.
fn words(piece: u64) -> impl Iterator<Item = [u8; 8]> {
    let per_piece = PIECE_BYTES as u64 / 8;
    let word = move |at: u64| (piece * per_piece + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..per_piece).map(move |at| word(at).to_le_bytes())
}

/// What piece number `piece` of the disk is to hold, [`PIECE_BYTES`] bytes.
pub fn pattern(piece: u64) -> Vec<u8> {
    words(piece).flatten().collect()
}

/// How many bytes of a piece are not what they are to be.
pub fn count_wrong(piece: u64, bytes: &[u8]) -> u64 {
    let wrong = words(piece)
        .flatten()
        .zip(bytes)
        .filter(|(expected, found)| expected != *found);
    wrong.count() as u64 + (PIECE_BYTES.saturating_sub(bytes.len())) as u64
}

/// All pieces of a disk, each once, neighbours far from one another.
#[derive(Debug)]
pub struct Places {
    pieces: u64,
    /// From one to the next; has no divisor in common with `pieces`.
    step: u64,
    next: u64,
    left: u64,
}

impl Places {
    /// Some order.
    pub fn forward(pieces: u64) -> Self {
        let step = (pieces / 3 * 2 + 1..).find(|step| greatest_common_divisor(*step, pieces) == 1);
        Self {
            pieces,
            step: step.unwrap_or(1),
            next: 0,
            left: pieces,
        }
    }

    /// The same one, the other way round.
    pub fn backward(pieces: u64) -> Self {
        let forward = Self::forward(pieces);
        Self {
            step: pieces.saturating_sub(forward.step % pieces.max(1)),
            ..forward
        }
    }
}

impl Iterator for Places {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let place = self.next;
        self.next = (place + self.step) % self.pieces;
        Some(place)
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_has_its_turn_once_in_both_orders() {
        for pieces in 0..200 {
            let forward: Vec<u64> = Places::forward(pieces).collect();
            let backward: Vec<u64> = Places::backward(pieces).collect();
            for mut order in [forward.clone(), backward.clone()] {
                order.sort_unstable();
                assert_eq!(order, Vec::from_iter(0..pieces));
            }
            if pieces > 4 {
                assert_ne!(forward, backward, "{pieces}");
            }
        }
    }

    #[test]
    fn a_wrong_byte_and_another_pieces_data_are_counted() {
        let mut bytes = pattern(3);
        assert_eq!((bytes.len(), count_wrong(3, &bytes)), (PIECE_BYTES, 0));
        bytes[77] ^= 1;
        assert_eq!(count_wrong(3, &bytes), 1);
        assert!(count_wrong(4, &pattern(3)) > PIECE_BYTES as u64 / 2);
        assert_eq!(count_wrong(3, &pattern(3)[..512]), PIECE_BYTES as u64 - 512);
    }
}
