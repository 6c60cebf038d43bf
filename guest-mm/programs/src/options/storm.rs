//! The arguments of `storm`.

use super::{BadArgument, set_each};

/// Most generations below the first member.
pub const MOST_DEPTH: u8 = 4;

/// What `storm` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StormOptions {
    /// `width=N`: children of each member: 1 to 8. Default 3.
    pub width: u8,
    /// `depth=N`: generations below the first member: 1 to 4. Default 3.
    pub depth: u8,
    /// `rounds=N`: how many storms. Default 1.
    pub rounds: u64,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
    /// `stay`: the first member does not end after its rounds.
    pub stays: bool,
}

impl StormOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            width: 3,
            depth: 3,
            rounds: 1,
            seed: 1,
            stays: false,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        if argument == "stay" {
            self.stays = true;
            return Some(());
        }
        let (name, value) = argument.split_once('=')?;
        let up_to = |most: u8| value.parse().ok().filter(|number| (1..=most).contains(number));
        match name {
            "width" => self.width = up_to(8)?,
            "depth" => self.depth = up_to(MOST_DEPTH)?,
            "rounds" => self.rounds = value.parse().ok()?,
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
    fn every_option_of_storm_is_understood_within_its_range() {
        let expected = StormOptions {
            width: 8,
            depth: 4,
            rounds: 2,
            seed: 9,
            stays: true,
        };
        let line = "width=8 depth=4 rounds=2 seed=9 stay";
        assert_eq!(StormOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["width=0", "width=9", "depth=0", "depth=5", "rounds", "stay=1"] {
            assert_eq!(StormOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
