//! The arguments of `shared`.

use super::{BadArgument, set_each};

/// What `shared` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedMode {
    /// Memory shared by forks and by name, waits, and pages in another order.
    All,
    /// `victim`: has the out-of-memory killer end one who waits.
    Victim,
}

/// What `shared` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedOptions {
    /// `pages=N`: pages that are shared, a multiple of 4. Default 64.
    pub pages: u64,
    /// `children=N`: 1 to 8. Default 2.
    pub children: u8,
    /// `rounds=N`: turns of each. Default 4.
    pub rounds: u32,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
    /// `victim`.
    pub mode: SharedMode,
    /// `stay`: does not end after all that.
    pub stays: bool,
}

impl SharedOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            pages: 64,
            children: 2,
            rounds: 4,
            seed: 1,
            mode: SharedMode::All,
            stays: false,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        match name {
            "pages" => self.pages = value.parse().ok().filter(|pages| *pages > 0 && pages % 4 == 0)?,
            "children" => self.children = value.parse().ok().filter(|number| (1..=8).contains(number))?,
            "rounds" => self.rounds = value.parse().ok()?,
            "seed" => self.seed = value.parse().ok()?,
            "victim" if argument == name => self.mode = SharedMode::Victim,
            "stay" if argument == name => self.stays = true,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_shared_is_understood_within_its_range() {
        let expected = SharedOptions {
            pages: 8,
            children: 8,
            rounds: 3,
            seed: 9,
            mode: SharedMode::Victim,
            stays: true,
        };
        let line = "pages=8 children=8 rounds=3 seed=9 victim stay";
        assert_eq!(SharedOptions::parse(line.split(' ')), Ok(expected));
        for bad in [
            "pages=0",
            "pages=6",
            "children=0",
            "children=9",
            "rounds",
            "stay=1",
            "victim=1",
        ] {
            assert_eq!(SharedOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
