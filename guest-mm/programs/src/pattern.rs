//! The pattern that memory is filled with: every 8-byte word depends on the program's seed, on the address of its
//! page, on how often the page was written, and on its place in the page.
//!
//! A page that comes back zeroed, that holds what it held before it was last written, or that was exchanged with
//! another one does not match. Both directions are one addition a word, which the compiler turns into vector
//! instructions.

/// Words in a page.
pub const WORDS: usize = 512;
/// Added from word to word: odd, so that all words of a page differ (2^64 divided by the golden ratio).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One page of memory.
pub type Page = [u64; WORDS];

/// What fills one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    first: u64,
}

/// A word that is not what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Its place in the page, 0 to 511.
    pub index: usize,
    /// What is there.
    pub found: u64,
    /// What was written.
    pub expected: u64,
}

impl Pattern {
    /// The pattern of the page at `address` when it is written for the `generation`th time.
    pub const fn new(seed: u64, address: u64, generation: u32) -> Self {
        let place = mix(address ^ seed.rotate_left(32));
        Self {
            first: mix(place ^ (generation as u64).wrapping_mul(STEP)),
        }
    }

    /// Writes it.
    pub fn fill(self, page: &mut Page) {
        let mut word = self.first;
        for place in page {
            *place = word;
            word = word.wrapping_add(STEP);
        }
    }

    /// Compares all of a page with it.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn check(self, page: &Page) -> Result<(), Mismatch> {
        let mut word = self.first;
        let mut difference = 0;
        for &found in page {
            difference |= found ^ word;
            word = word.wrapping_add(STEP);
        }
        if difference == 0 {
            Ok(())
        } else {
            Err(self.find(page))
        }
    }

    #[cold]
    fn find(self, page: &Page) -> Mismatch {
        let mut expected = self.first;
        for (index, &found) in page.iter().enumerate() {
            if found != expected {
                return Mismatch {
                    index,
                    found,
                    expected,
                };
            }
            expected = expected.wrapping_add(STEP);
        }
        // The page was different when it was compared and is not any more.
        Mismatch {
            index: WORDS - 1,
            found: page[WORDS - 1],
            expected: page[WORDS - 1],
        }
    }
}

/// The pattern of a page of a file, by the numbers of both, when it is written for the `generation`th time.
pub const fn file_page(seed: u64, file: u64, page: u64, generation: u32) -> Pattern {
    Pattern::new(seed, file << 32 | page, generation)
}

/// Spreads every bit of a number over all of it (Sebastiano Vigna's splitmix64).
pub const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(STEP);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A sequence of numbers without visible order, for choices that need no secrecy.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that `seed` starts.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `limit`; 0 when there is none.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        match mix(self.0).checked_rem(limit) {
            Some(number) => number,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pattern: Pattern) -> Page {
        let mut page = [0; WORDS];
        pattern.fill(&mut page);
        page
    }

    #[test]
    fn what_was_written_is_found_again() {
        let pattern = Pattern::new(1, 0x1000, 1);
        assert_eq!(pattern.check(&filled(pattern)), Ok(()));
    }

    #[test]
    fn a_zeroed_page_is_caught() {
        for address in (0..1 << 20).step_by(4096) {
            assert!(Pattern::new(0, address, 0).check(&[0; WORDS]).is_err());
        }
    }

    #[test]
    fn a_stale_page_is_caught() {
        let old = filled(Pattern::new(1, 0x1000, 1));
        assert!(Pattern::new(1, 0x1000, 2).check(&old).is_err());
    }

    #[test]
    fn the_page_of_another_address_or_program_is_caught() {
        let page = filled(Pattern::new(1, 0x1000, 1));
        assert!(Pattern::new(1, 0x2000, 1).check(&page).is_err());
        assert!(Pattern::new(2, 0x1000, 1).check(&page).is_err());
    }

    #[test]
    fn one_flipped_bit_anywhere_is_caught_and_located() {
        let pattern = Pattern::new(7, 0x40_0000, 3);
        for index in 0..WORDS {
            let mut page = filled(pattern);
            let expected = page[index];
            page[index] ^= 1 << (index % 64);
            assert_eq!(
                pattern.check(&page),
                Err(Mismatch {
                    index,
                    found: page[index],
                    expected
                })
            );
        }
    }

    #[test]
    fn two_exchanged_words_are_caught() {
        let pattern = Pattern::new(7, 0x40_0000, 3);
        let mut page = filled(pattern);
        page.swap(10, 11);
        assert_eq!(pattern.check(&page).unwrap_err().index, 10);
    }
}
