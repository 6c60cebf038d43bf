//! The arguments of `bench`.

use super::{BadArgument, parse_size, set_each};

/// What `bench` measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BenchWork {
    /// Faults by kind, and a call that does nothing.
    Faults,
    /// A file read from the disk and from memory, and written.
    Files,
    /// Memory that leaves at the program's word, and is read again, one page after the other.
    Swap,
    /// Memory filled and read once, one page after the other, whether there is as much or not.
    Fill,
    /// A file read once while some memory is used again and again.
    Reading,
    /// Memory used, some of it more than the rest.
    Paging,
    /// The same while a file is read over and over.
    Mixed,
    /// A mapped file used, some of it more than the rest.
    MappedFile,
}

/// What `bench` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BenchOptions<'a> {
    /// `work=`. Nothing without.
    pub work: Option<BenchWork>,
    /// `size=N`: bytes of memory (with suffix K, M or G). Default 8M.
    pub size: u64,
    /// `pages=N`: pages of the file. Default 2048.
    pub pages: u64,
    /// `file=PATH`: the file that is read. Default `/data`.
    pub file: &'a str,
    /// `rounds=N`: how often faults, files and swap are measured. Default 5.
    pub rounds: u64,
}

impl BenchWork {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "faults" => Self::Faults,
            "files" => Self::Files,
            "swap" => Self::Swap,
            "fill" => Self::Fill,
            "reading" => Self::Reading,
            "paging" => Self::Paging,
            "mixed" => Self::Mixed,
            "mapped" => Self::MappedFile,
            _ => return None,
        })
    }
}

impl<'a> BenchOptions<'a> {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            work: None,
            size: 8 << 20,
            pages: 2048,
            file: "/data",
            rounds: 5,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &'a str) -> Option<()> {
        let (name, value) = argument.split_once('=')?;
        let number = || value.parse().ok().filter(|number| *number > 0);
        match name {
            "work" => self.work = Some(BenchWork::from_name(value)?),
            "size" => self.size = parse_size(value).filter(|size| *size > 0)?,
            "pages" => self.pages = number()?,
            "rounds" => self.rounds = number()?,
            "file" => self.file = value,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_bench_is_understood() {
        let expected = BenchOptions {
            work: Some(BenchWork::Mixed),
            size: 64 << 20,
            pages: 100,
            file: "/big",
            rounds: 2,
        };
        let line = "work=mixed size=64M pages=100 file=/big rounds=2";
        assert_eq!(BenchOptions::parse(line.split(' ')), Ok(expected));
        for name in ["faults", "files", "swap", "fill", "reading", "paging", "mapped"] {
            assert!(BenchWork::from_name(name).is_some(), "{name}");
        }
        for (line, bad) in [
            ("work=nothing", "work=nothing"),
            ("work=swap rounds=0", "rounds=0"),
            ("work=swap stay", "stay"),
        ] {
            assert_eq!(BenchOptions::parse(line.split(' ')), Err(BadArgument(bad)));
        }
    }
}
