//! The arguments of `window` and `sparse`.

use super::{BadArgument, set_each};

/// What `window` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowOptions<'a> {
    /// `file=PATH`: the file that it looks at, which it makes. Default `/shm/window`.
    pub file: &'a str,
    /// `pages=N`: pages of it. Default 1024.
    pub pages: u64,
    /// `rounds=N`: how often it looks at all of them; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
    /// `pause_ms=N`: how long it sleeps after each round. Default 0.
    pub pause_ms: u64,
}

impl<'a> WindowOptions<'a> {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            file: "/shm/window",
            pages: 1024,
            rounds: None,
            seed: 1,
            pause_ms: 0,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &'a str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "file" => self.file = value,
            "pages" => self.pages = value.parse().ok().filter(|pages| *pages > 1)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            "pause_ms" => self.pause_ms = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// What `sparse` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SparseOptions {
    /// `chunks=N`: how much memory it looks at, in chunks of 2 MiB: 1 to 64. Default 4.
    pub chunks: u64,
    /// `one_in=N`: it stores to one page in so many: 2 to 512. Default 64.
    pub one_in: u64,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
}

impl SparseOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            chunks: 4,
            one_in: 64,
            seed: 1,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        let within = |least, most| {
            value
                .parse()
                .ok()
                .filter(|number| (least..=most).contains(number))
        };
        match name {
            "chunks" => self.chunks = within(1, 64)?,
            "one_in" => self.one_in = within(2, 512)?,
            "seed" => self.seed = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_window_is_understood_within_its_range() {
        let expected = WindowOptions {
            file: "/w",
            pages: 8,
            rounds: Some(3),
            seed: 9,
            pause_ms: 5,
        };
        let line = "file=/w pages=8 rounds=3 seed=9 pause_ms=5";
        assert_eq!(WindowOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["pages=1", "rounds", "stay"] {
            assert_eq!(WindowOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }

    #[test]
    fn every_option_of_sparse_is_understood_within_its_range() {
        let expected = SparseOptions {
            chunks: 64,
            one_in: 2,
            seed: 9,
        };
        let line = "chunks=64 one_in=2 seed=9";
        assert_eq!(SparseOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["chunks=0", "chunks=65", "one_in=1", "one_in=513", "seed"] {
            assert_eq!(SparseOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
