//! The arguments of `kind`.

use super::{BadArgument, parse_size, set_each};

/// What kind of pages `kind` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory of its own, in small pages, without a place on a disk.
    Anonymous,
    /// The same, that has been in the swap area and has its place there still.
    Swapped,
    /// The same, shared with a child that was forked, until one of the two stores to it.
    Forked,
    /// Pages of a file, mapped, as they are on the disk.
    Clean,
    /// Pages of a file that nobody has written: they have no place on the disk.
    Hole,
    /// Pages of a file, mapped and stored to all the time.
    Dirty,
    /// The same, written to the disk all the time.
    WriteBack,
    /// Pages of a file without a disk, mapped.
    Shmem,
    /// Memory that is locked.
    Locked,
    /// Memory in huge pages, as far as there are any.
    Huge,
    /// Huge pages of the reserved pool, as soon as there are any.
    Reserved,
    /// Pages of a file without a disk, mapped in an order of its own.
    NonLinear,
    /// Memory that a disk is reading into all the time, past the page cache.
    Direct,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Anonymous,
        Self::Swapped,
        Self::Forked,
        Self::Clean,
        Self::Hole,
        Self::Dirty,
        Self::WriteBack,
        Self::Shmem,
        Self::Locked,
        Self::Huge,
        Self::Reserved,
        Self::NonLinear,
        Self::Direct,
    ];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Swapped => "swapped",
            Self::Forked => "forked",
            Self::Clean => "clean",
            Self::Hole => "hole",
            Self::Dirty => "dirty",
            Self::WriteBack => "writeback",
            Self::Shmem => "shmem",
            Self::Locked => "locked",
            Self::Huge => "huge",
            Self::Reserved => "reserved",
            Self::NonLinear => "nonlinear",
            Self::Direct => "direct",
        }
    }
}

/// What `kind` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KindOptions {
    /// `of=KIND`: what it holds; must be given.
    pub kind: Kind,
    /// `pages=N`: how much of it, in pages of 4 KiB: 1 to 4096; huge pages are whole ones. Default 512.
    pub pages: u64,
    /// `from=N`: it waits until the guest manages so many bytes (with suffix K, M or G). Default 0.
    pub from: u64,
    /// `rounds=N`: how often it checks all of it before it ends; for ever without.
    pub rounds: Option<u64>,
    /// `pause_ms=N`: how long it sleeps after each round. Default 1.
    pub pause_ms: u64,
    /// `seed=N`: what its pattern starts from. Default 1.
    pub seed: u64,
}

impl KindOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing, or `of=` if that is missing.
    pub fn parse<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            kind: Kind::Anonymous,
            pages: 512,
            from: 0,
            rounds: None,
            pause_ms: 1,
            seed: 1,
        };
        let mut has_kind = false;
        let arguments = arguments.inspect(|argument| has_kind |= argument.starts_with("of="));
        let options = set_each(options, arguments, Self::set)?;
        has_kind.then_some(options).ok_or(BadArgument("of="))
    }

    fn set(&mut self, argument: &str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        match name {
            "of" => self.kind = Kind::ALL.into_iter().find(|kind| kind.name() == value)?,
            "pages" => {
                let pages = value.parse().ok();
                self.pages = pages.filter(|pages| (1..=4096).contains(pages))?;
            }
            "from" => self.from = parse_size(value)?,
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
    fn every_option_of_kind_is_understood_and_a_kind_is_needed() {
        for kind in Kind::ALL {
            let expected = KindOptions {
                kind,
                pages: 4096,
                from: 96 << 20,
                rounds: Some(3),
                pause_ms: 5,
                seed: 9,
            };
            let of = ["of=", kind.name()].concat();
            let line = "pages=4096 from=96M rounds=3 pause_ms=5 seed=9";
            let words = [of.as_str()].into_iter().chain(line.split(' '));
            assert_eq!(KindOptions::parse(words), Ok(expected));
        }
        for (line, bad) in [
            ("pages=8", "of="),
            ("of=any", "of=any"),
            ("of=dirty pages=0", "pages=0"),
            ("of=dirty pages=4097", "pages=4097"),
            ("of=dirty stay", "stay"),
        ] {
            assert_eq!(KindOptions::parse(line.split(' ')), Err(BadArgument(bad)));
        }
    }
}
