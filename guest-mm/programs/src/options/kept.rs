//! The arguments of `kept`.

use super::{BadArgument, CHUNK, set_each};

/// What `kept` keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeptWhat {
    /// A file under `/ram`, which is in memory alone.
    Ram,
    /// Buffers that are registered.
    Buffer,
    /// An event ring.
    Ring,
}

/// What `kept` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptOptions {
    /// `what=ram|buffer|ring`. Default `ram`.
    pub what: KeptWhat,
    /// `pages=N`: pages of its file, or of its buffers in whole chunks of 2 MiB. Default 512.
    pub pages: u64,
    /// `rounds=N`: how often it checks all of it; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
    /// `pause_ms=N`: how long it sleeps after each round. Default 1.
    pub pause_ms: u64,
    /// `again=1`: registers other buffers every eighth round.
    pub is_again: bool,
    /// `in=disk|shm`: where the file is that is read with events. Default `disk`.
    pub is_in_shm: bool,
}

impl KeptOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            what: KeptWhat::Ram,
            pages: 512,
            rounds: None,
            seed: 1,
            pause_ms: 1,
            is_again: false,
            is_in_shm: false,
        };
        set_each(options, arguments, Self::set)
    }

    /// Chunks of buffers: at least one.
    pub const fn chunks(&self) -> u64 {
        (self.pages * 4096).div_ceil(CHUNK)
    }

    /// The file that is read with events.
    pub const fn path(&self) -> &'static str {
        if self.is_in_shm { "/shm/ring" } else { "/ring" }
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "what" => {
                self.what = match value {
                    "ram" => KeptWhat::Ram,
                    "buffer" => KeptWhat::Buffer,
                    "ring" => KeptWhat::Ring,
                    _ => return None,
                };
            }
            "pages" => self.pages = value.parse().ok().filter(|pages| *pages > 0)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            "pause_ms" => self.pause_ms = value.parse().ok()?,
            "again" => self.is_again = flag(value)?,
            "in" => {
                self.is_in_shm = match value {
                    "disk" => false,
                    "shm" => true,
                    _ => return None,
                };
            }
            _ => return None,
        }
        Some(())
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_kept_is_understood_within_its_range() {
        let expected = KeptOptions {
            what: KeptWhat::Buffer,
            pages: 513,
            rounds: Some(2),
            seed: 3,
            pause_ms: 4,
            is_again: true,
            is_in_shm: true,
        };
        let words = "what=buffer pages=513 rounds=2 seed=3 pause_ms=4 again=1 in=shm";
        assert_eq!(KeptOptions::parse(words.split(' ')), Ok(expected));
        assert_eq!((expected.chunks(), expected.path()), (2, "/shm/ring"));
        for bad in ["what=disk", "pages=0", "again=2", "in=ram", "stay"] {
            assert_eq!(KeptOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
