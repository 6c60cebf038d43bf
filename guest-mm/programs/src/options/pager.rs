//! The arguments of `pager`.

use super::{BadArgument, Pages, parse_size, set_each};

/// What `pager` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagerOptions {
    /// `size=N`: so many bytes (with suffix K, M or G), in chunks of 2 MiB, whatever there is; must be given.
    pub size: u64,
    /// `pages=`: which pages it asks for. Default small.
    pub pages: Pages,
    /// `lock=N`: the first N bytes of them are locked in memory. Default 0.
    pub lock: u64,
    /// `oom=N`: its `oom_score_adj`. Default 0.
    pub oom_score_adj: i16,
    /// `rounds=N`: how often it checks all of it before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `pause_ms=N`: how long it sleeps after each round. Default 0.
    pub pause_ms: u64,
    /// `seed=N`: what its pattern and its order start from. Default 1.
    pub seed: u64,
    /// `stay`: does not end after its rounds, but keeps what it has.
    pub stays: bool,
}

impl PagerOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing, or `size=` if that is missing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            size: 0,
            pages: Pages::Small,
            lock: 0,
            oom_score_adj: 0,
            rounds: None,
            pause_ms: 0,
            seed: 1,
            stays: false,
        };
        match set_each(options, arguments, Self::set)? {
            Self { size: 0, .. } => Err(BadArgument("size=")),
            options => Ok(options),
        }
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        if argument == "stay" {
            self.stays = true;
            return Some(());
        }
        let (name, value) = argument.split_once('=')?;
        match name {
            "size" => self.size = parse_size(value)?,
            "pages" => self.pages = Pages::from_name(value)?,
            "lock" => self.lock = parse_size(value)?,
            "oom" => self.oom_score_adj = value.parse().ok()?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "pause_ms" => self.pause_ms = value.parse().ok()?,
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
    fn every_option_of_pager_is_understood_and_a_size_is_needed() {
        let expected = PagerOptions {
            size: 64 << 20,
            pages: Pages::Mixed,
            lock: 2 << 20,
            oom_score_adj: -7,
            rounds: Some(3),
            pause_ms: 5,
            seed: 9,
            stays: true,
        };
        let line = "size=64M pages=mixed lock=2M oom=-7 rounds=3 pause_ms=5 seed=9 stay";
        assert_eq!(PagerOptions::parse(line.split(' ')), Ok(expected));
        for (line, bad) in [
            ("rounds=1", "size="),
            ("size=0", "size="),
            ("oom=40000", "oom=40000"),
            ("stay=1", "stay=1"),
        ] {
            assert_eq!(PagerOptions::parse(line.split(' ')), Err(BadArgument(bad)));
        }
    }
}
