//! The arguments of `direct`.

use super::{BadArgument, set_each};

/// What `direct` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectOptions {
    /// `pages=N`: pages of its file. Default 1024.
    pub pages: u64,
    /// `rounds=N`: how often it writes all of it; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
}

impl DirectOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            pages: 1024,
            rounds: None,
            seed: 1,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "pages" => self.pages = value.parse().ok().filter(|pages| *pages > 1)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
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
    fn every_option_of_direct_is_understood_within_its_range() {
        let expected = DirectOptions {
            pages: 9,
            rounds: Some(2),
            seed: 3,
        };
        assert_eq!(
            DirectOptions::parse("pages=9 rounds=2 seed=3".split(' ')),
            Ok(expected)
        );
        for bad in ["pages=1", "rounds", "stay"] {
            assert_eq!(DirectOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
