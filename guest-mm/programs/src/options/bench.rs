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
    /// Memory checked page by page while the guest shrinks: how much in each slice of time.
    Slices,
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
    /// Of `work=slices` alone.
    pub slices: SlicesOptions,
}

/// What `work=slices` does besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlicesOptions {
    /// `at=N`: it begins when the guest has so many bytes (with suffix K, M or G), and no resize is under way. Default 0.
    pub at: u64,
    /// `spare=N`: bytes that are touched and given back before anything is measured, so that the host has memory for them. Default 0.
    pub spare: u64,
    /// `keep=P%`: the share of its memory that it keeps of all it has filled, 0 to 100; the rest is given back in runs of 16 pages. Default 100.
    /// With 0 it uses a part of `spare` instead.
    pub keep: u8,
    /// `huge`: its memory is in huge pages.
    pub is_huge: bool,
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
            "slices" => Self::Slices,
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
            slices: SlicesOptions {
                at: 0,
                spare: 0,
                keep: 100,
                is_huge: false,
            },
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &'a str) -> Option<()> {
        if argument == "huge" {
            self.slices.is_huge = true;
            return Some(());
        }
        let (name, value) = argument.split_once('=')?;
        let number = || value.parse().ok().filter(|number| *number > 0);
        match name {
            "work" => self.work = Some(BenchWork::from_name(value)?),
            "size" => self.size = parse_size(value).filter(|size| *size > 0)?,
            "pages" => self.pages = number()?,
            "rounds" => self.rounds = number()?,
            "file" => self.file = value,
            "at" => self.slices.at = parse_size(value)?,
            "spare" => self.slices.spare = parse_size(value)?,
            "keep" => {
                let percent = value.strip_suffix('%')?.parse().ok();
                self.slices.keep = percent.filter(|percent| *percent <= 100)?;
            }
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
            slices: SlicesOptions {
                at: 1 << 30,
                spare: 2 << 20,
                keep: 50,
                is_huge: true,
            },
        };
        let line = "work=mixed size=64M pages=100 file=/big rounds=2 at=1G spare=2M keep=50% huge";
        assert_eq!(BenchOptions::parse(line.split(' ')), Ok(expected));
        for name in [
            "faults", "files", "swap", "fill", "reading", "paging", "mapped", "slices",
        ] {
            assert!(BenchWork::from_name(name).is_some(), "{name}");
        }
        for (line, bad) in [
            ("work=nothing", "work=nothing"),
            ("work=swap rounds=0", "rounds=0"),
            ("work=swap stay", "stay"),
            ("work=slices keep=50", "keep=50"),
            ("work=slices keep=101%", "keep=101%"),
        ] {
            assert_eq!(BenchOptions::parse(line.split(' ')), Err(BadArgument(bad)));
        }
    }
}
