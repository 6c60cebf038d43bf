//! The programs' arguments: words `name=value`.

mod bench;
mod direct;
mod files;
mod kept;
mod kind;
mod pager;
mod shared;
mod storm;
mod window;

pub use bench::{BenchOptions, BenchWork, SlicesOptions};
pub use direct::DirectOptions;
pub use files::{FilesMode, FilesOptions, NamesOptions, ToldOptions};
pub use kept::{KeptOptions, KeptWhat};
pub use kind::{Kind, KindOptions};
pub use pager::PagerOptions;
pub use shared::{SharedMode, SharedOptions};
pub use storm::{MOST_DEPTH, StormOptions};
pub use window::{SparseOptions, WindowOptions};

use crate::abi::StressRow;
use core::fmt;

/// Bytes of a chunk, the unit in which `hog` takes and gives memory back: a huge page.
pub const CHUNK: u64 = 2 << 20;

/// How much memory `hog` keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// `fill=P%`: that share of the guest's memory, also while it grows and shrinks. 1 to 95.
    Percent(u8),
    /// `size=N`: so many bytes (with suffix K, M or G).
    Bytes(u64),
}

/// Which pages `hog` asks for: `pages=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// 2 MiB where there are any (the default).
    Huge,
    /// 4 KiB.
    Small,
    /// Both, in turn.
    Mixed,
}

/// What `hog` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HogOptions {
    /// How much memory it keeps. Default half of the guest's.
    pub amount: Amount,
    /// In which pages.
    pub pages: Pages,
    /// `rounds=N`: how often it checks all of it before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
    /// `pause_ms=N`: how long it sleeps after each round. Default 0.
    pub pause_ms: u64,
}

/// What `stress` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StressOptions {
    /// `row=NAME`: the mechanism; must be given.
    pub row: StressRow,
    /// `rounds=N`: how many rounds before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what choices and patterns start from. Default 1.
    pub seed: u64,
    /// `pause_ms=N`: how long it sleeps after each round. Default 0.
    pub pause_ms: u64,
    /// `stay`: does not end after its rounds, but keeps what it has, so that it can be looked at.
    pub stays: bool,
}

/// What `family` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FamilyOptions {
    /// `chunks=N`: memory that its members share, in chunks of 2 MiB: 1 to 8. Default 2.
    pub chunks: u8,
    /// `children=N`: how many it has at a time: 1 to 8. Default 3.
    pub children: u8,
    /// `rounds=N`: how many rounds before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
}

impl FamilyOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            chunks: 2,
            children: 3,
            rounds: None,
            seed: 1,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        let one_to_eight = |value: &str| value.parse().ok().filter(|number| (1..=8).contains(number));
        match name {
            "chunks" => self.chunks = one_to_eight(value)?,
            "children" => self.children = one_to_eight(value)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// What `reserved` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedOptions {
    /// `chunks=N`: how many chunks of 2 MiB it reserves: 1 to 64. Default 2.
    pub chunks: u8,
    /// `rounds=N`: how often it checks all of it before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
}

impl ReservedOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            chunks: 2,
            rounds: None,
            seed: 1,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "chunks" => self.chunks = value.parse().ok().filter(|chunks| (1..=64).contains(chunks))?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// What `scatter` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScatterOptions {
    /// `fill=P%`: the share of the guest's memory that it takes in small pages before it gives half of them back: 1 to 95. Default 80.
    pub percent: u8,
    /// `huge=N`: chunks of 2 MiB that it then asks for in huge pages: 1 to 64. Default 4.
    pub huge: u64,
    /// `from=N`: it waits until the guest manages so many bytes (with suffix K, M or G). Default 0.
    pub from: u64,
    /// `rounds=N`: how often it checks all of it before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
}

impl ScatterOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            percent: 80,
            huge: 4,
            from: 0,
            rounds: None,
            seed: 1,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "fill" => {
                let percent = value.strip_suffix('%')?.parse().ok();
                self.percent = percent.filter(|percent| (1..=95).contains(percent))?;
            }
            "huge" => self.huge = value.parse().ok().filter(|huge| (1..=64).contains(huge))?,
            "from" => self.from = parse_size(value)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

impl Pages {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "huge" => Self::Huge,
            "small" => Self::Small,
            "mixed" => Self::Mixed,
            _ => return None,
        })
    }
}

/// Which physical address `trespass` touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trespass {
    /// `gpa=first-unplugged` (the default): the first byte of the lowest unplugged block.
    FirstUnplugged,
    /// `gpa=given-back`: the same, but only once that block has been plugged and unplugged again.
    GivenBack,
    /// `gpa=N`.
    Address(u64),
}

/// An argument that a program does not understand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadArgument<'a>(pub &'a str);

impl fmt::Display for BadArgument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad argument {}", self.0)
    }
}

impl HogOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let amount = Amount::Percent(50);
        let options = Self {
            amount,
            pages: Pages::Huge,
            rounds: None,
            seed: 1,
            pause_ms: 0,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "fill" => {
                let percent = value.strip_suffix('%')?.parse().ok();
                self.amount = Amount::Percent(percent.filter(|percent| (1..=95).contains(percent))?);
            }
            "size" => self.amount = Amount::Bytes(parse_size(value)?),
            "pages" => self.pages = Pages::from_name(value)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            "pause_ms" => self.pause_ms = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

impl Amount {
    /// How many chunks that is of `total` bytes.
    pub const fn chunks(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * percent as u64 / CHUNK,
            Self::Bytes(bytes) => bytes.div_ceil(CHUNK),
        }
    }
}

impl Trespass {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let mut where_to = Self::FirstUnplugged;
        for argument in arguments {
            where_to = match argument.strip_prefix("gpa=") {
                Some("first-unplugged") => Self::FirstUnplugged,
                Some("given-back") => Self::GivenBack,
                Some(number) => Self::Address(parse_number(number).ok_or(BadArgument(argument))?),
                None => return Err(BadArgument(argument)),
            };
        }
        Ok(where_to)
    }
}

impl StressOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing, or `row=` if that is missing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let mut row = None;
        let mut options = Self {
            row: StressRow::Buddy,
            rounds: None,
            seed: 1,
            pause_ms: 0,
            stays: false,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            let understood = match name {
                "row" => StressRow::from_name(value).map(|named| row = Some(named)),
                "rounds" => value.parse().ok().map(|rounds| options.rounds = Some(rounds)),
                "seed" => value.parse().ok().map(|seed| options.seed = seed),
                "pause_ms" => value.parse().ok().map(|pause_ms| options.pause_ms = pause_ms),
                "stay" if argument == "stay" => {
                    options.stays = true;
                    Some(())
                }
                _ => None,
            };
            understood.ok_or(BadArgument(argument))?;
        }
        options.row = row.ok_or(BadArgument("row="))?;
        Ok(options)
    }
}

/// Lets each argument set something.
fn set_each<'a, T>(
    mut options: T,
    arguments: impl Iterator<Item = &'a str>,
    set: impl Fn(&mut T, &'a str) -> Option<()>,
) -> Result<T, BadArgument<'a>> {
    for argument in arguments {
        set(&mut options, argument).ok_or(BadArgument(argument))?;
    }
    Ok(options)
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    parse_number(number)?.checked_mul(1 << shift)
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_hog_is_understood() {
        let line = "fill=70% pages=mixed rounds=3 seed=9 pause_ms=5";
        let expected = HogOptions {
            amount: Amount::Percent(70),
            pages: Pages::Mixed,
            rounds: Some(3),
            seed: 9,
            pause_ms: 5,
        };
        assert_eq!(HogOptions::parse(line.split(' ')), Ok(expected));
        let sized = HogOptions::parse(["size=64M"].into_iter()).unwrap();
        assert_eq!(sized.amount, Amount::Bytes(64 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for bad in [
            "fill=70",
            "fill=0%",
            "fill=96%",
            "size=",
            "size=9G9",
            "pages=big",
            "rounds=x",
            "loud",
            "a=b",
        ] {
            assert_eq!(HogOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
        assert_eq!(Trespass::parse(["here"].into_iter()), Err(BadArgument("here")));
        assert_eq!(
            Trespass::parse(["gpa=up"].into_iter()),
            Err(BadArgument("gpa=up"))
        );
    }

    #[test]
    fn every_option_of_stress_is_understood_and_a_row_is_needed() {
        let line = "row=vmalloc rounds=3 seed=9 pause_ms=5 stay";
        let expected = StressOptions {
            row: StressRow::Vmalloc,
            rounds: Some(3),
            seed: 9,
            pause_ms: 5,
            stays: true,
        };
        assert_eq!(StressOptions::parse(line.split(' ')), Ok(expected));
        for (line, bad) in [
            ("seed=2", "row="),
            ("row=all", "row=all"),
            ("row=slab stay=1", "stay=1"),
            ("row=slab rounds", "rounds"),
            ("row=slab fast", "fast"),
        ] {
            assert_eq!(StressOptions::parse(line.split(' ')), Err(BadArgument(bad)));
        }
    }

    #[test]
    fn every_option_of_family_is_understood_within_its_range() {
        let expected = FamilyOptions {
            chunks: 8,
            children: 1,
            rounds: Some(4),
            seed: 5,
        };
        let line = "chunks=8 children=1 rounds=4 seed=5";
        assert_eq!(FamilyOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["chunks=0", "chunks=9", "children=0", "children", "size=1"] {
            assert_eq!(FamilyOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }

    #[test]
    fn every_option_of_scatter_is_understood_within_its_range() {
        let expected = ScatterOptions {
            percent: 70,
            huge: 3,
            from: 64 << 20,
            rounds: Some(2),
            seed: 7,
        };
        let line = "fill=70% huge=3 from=64M rounds=2 seed=7";
        assert_eq!(ScatterOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["fill=70", "fill=96%", "huge=0", "huge=65", "rounds", "size=1M"] {
            assert_eq!(ScatterOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }

    #[test]
    fn every_option_of_reserved_is_understood_within_its_range() {
        let expected = ReservedOptions {
            chunks: 64,
            rounds: Some(2),
            seed: 7,
        };
        let line = "chunks=64 rounds=2 seed=7";
        assert_eq!(ReservedOptions::parse(line.split(' ')), Ok(expected));
        for bad in ["chunks=0", "chunks=65", "rounds", "huge=1"] {
            assert_eq!(ReservedOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }

    #[test]
    fn a_share_follows_the_total_and_a_size_does_not() {
        assert_eq!(Amount::Percent(50).chunks(100 * CHUNK), 50);
        assert_eq!(Amount::Percent(95).chunks(1 << 40), 498_073);
        assert_eq!(Amount::Bytes(5 << 20).chunks(0), 3);
    }

    #[test]
    fn addresses_are_decimal_or_hexadecimal() {
        assert_eq!(
            Trespass::parse(["gpa=0x100000000"].into_iter()),
            Ok(Trespass::Address(1 << 32))
        );
        assert_eq!(
            Trespass::parse(["gpa=given-back"].into_iter()),
            Ok(Trespass::GivenBack)
        );
        assert_eq!(
            Trespass::parse(["gpa=4096"].into_iter()),
            Ok(Trespass::Address(4096))
        );
        assert_eq!(Trespass::parse([].into_iter()), Ok(Trespass::FirstUnplugged));
    }
}
