//! Holds mebibytes (a multiple of 64) in chunks, each filled with words derived from their position and the chunk's
//! generation. Round after round it verifies every word, then gives one chunk back to the kernel and fills a new one, so
//! that over time its memory wanders into whatever the kernel hands out: hot-added blocks too. After each round the file
//! holds one line: `rounds R checked C failed F` (words).

/// 64 MiB: above every threshold at which an allocator would keep a freed chunk for itself.
const CHUNK_WORDS: usize = 8 << 20;

struct Chunk {
    generation: u64,
    words: Vec<u64>,
}

impl Chunk {
    fn fill(generation: u64) -> Self {
        Self {
            generation,
            words: (0..CHUNK_WORDS)
                .map(|position| word(generation, position))
                .collect(),
        }
    }

    /// Number of words that are not what was written.
    fn wrong_words(&self) -> usize {
        let words = self.words.iter().enumerate();
        words
            .filter(|(position, found)| **found != word(self.generation, *position))
            .count()
    }
}

/// Differs between any two positions of a chunk and between generations: an odd multiplier permutes.
fn word(generation: u64, position: usize) -> u64 {
    (position as u64 ^ generation << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Goes on until it is killed.
pub(crate) fn run(mebibytes: usize, file: &str) -> Result<(), String> {
    let mut generation = 0;
    let mut next = || {
        generation += 1;
        Chunk::fill(generation)
    };
    let mut chunks: Vec<Chunk> = (0..mebibytes / 64).map(|_| next()).collect();
    if chunks.is_empty() {
        return Err(format!("{mebibytes} MiB are less than one chunk of 64"));
    }
    let (mut checked, mut failed) = (0, 0);
    for round in 1_usize.. {
        failed += chunks.iter().map(Chunk::wrong_words).sum::<usize>();
        checked += chunks.len() * CHUNK_WORDS;
        crate::report(
            file,
            &format!("rounds {round} checked {checked} failed {failed}\n"),
        )?;
        let oldest = chunks.remove(0);
        drop(oldest);
        chunks.push(next());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_and_a_chunk_of_another_generation_are_wrong() {
        let mut chunk = Chunk::fill(3);
        assert_eq!(chunk.wrong_words(), 0);
        chunk.words[12_345] ^= 1;
        assert_eq!(chunk.wrong_words(), 1);
        chunk.words[12_345] ^= 1;
        // As if the memory of an earlier generation had come back.
        chunk.generation = 4;
        assert_eq!(chunk.wrong_words(), CHUNK_WORDS);
    }
}
