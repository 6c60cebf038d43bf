//! The arguments of `files`, `names` and `told`.

use super::{BadArgument, set_each};

/// What `files` does with its files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilesMode {
    /// Writes them, and finds what it wrote.
    Write,
    /// `check`: only finds what was written.
    Check,
}

/// What `files` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilesOptions<'a> {
    /// `dir=PATH`: where they are; made if it is not there. Default `/files`.
    pub directory: &'a str,
    /// `files=N`: how many. Default 4.
    pub files: u64,
    /// `pages=N`: of how many pages of 4096 bytes each. Default 64.
    pub pages: u64,
    /// `rounds=N`: how often it writes them; for ever without.
    pub rounds: Option<u64>,
    /// `seed=N`: what its patterns start from. Default 1.
    pub seed: u64,
    /// `generation=N`: the first round's pattern. Default 1.
    pub generation: u32,
    /// `check`.
    pub mode: FilesMode,
    /// Not `nosync`: each file is synced when it was written.
    pub syncs: bool,
    /// Not `nomap`: files are mapped too.
    pub maps: bool,
    /// Not `noread`: files are read too.
    pub reads: bool,
    /// `oom=N`: its `oom_score_adj`. Default 0.
    pub oom_score_adj: i16,
}

impl<'a> FilesOptions<'a> {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            directory: "/files",
            files: 4,
            pages: 64,
            rounds: None,
            seed: 1,
            generation: 1,
            mode: FilesMode::Write,
            syncs: true,
            maps: true,
            reads: true,
            oom_score_adj: 0,
        };
        set_each(options, arguments, Self::set)
    }

    fn set(&mut self, argument: &'a str) -> Option<()> {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        match name {
            "dir" => self.directory = value,
            "files" => self.files = value.parse().ok()?,
            "pages" => self.pages = value.parse().ok().filter(|pages| *pages > 0)?,
            "rounds" => self.rounds = Some(value.parse().ok()?),
            "seed" => self.seed = value.parse().ok()?,
            "generation" => self.generation = value.parse().ok()?,
            "check" => self.mode = FilesMode::Check,
            "nosync" => self.syncs = false,
            "nomap" => self.maps = false,
            "noread" => self.reads = false,
            "oom" => self.oom_score_adj = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// What `names` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamesOptions<'a> {
    /// `dir=PATH`: the directory that it makes, or empties if it is there. Default `/names`.
    pub directory: &'a str,
    /// `count=N`: names in it. Default 500.
    pub count: u64,
    /// `rounds=N`: how often it looks all of them up. Default 2.
    pub rounds: u64,
    /// `times=N`: how often it does all of that. Default 1.
    pub times: u64,
}

impl<'a> NamesOptions<'a> {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let mut options = Self {
            directory: "/names",
            count: 500,
            rounds: 2,
            times: 1,
        };
        for argument in arguments {
            let set = argument.split_once('=').and_then(|(name, value)| {
                match name {
                    "dir" => options.directory = value,
                    "count" => options.count = value.parse().ok()?,
                    "rounds" => options.rounds = value.parse().ok()?,
                    "times" => options.times = value.parse().ok()?,
                    _ => return None,
                }
                Some(())
            });
            set.ok_or(BadArgument(argument))?;
        }
        Ok(options)
    }
}

/// What `told` is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ToldOptions<'a> {
    /// `file=PATH`: the file that is open twice, which it makes. Default `/told`.
    pub file: &'a str,
    /// `pages=N`: pages that it writes. Default 1024.
    pub pages: u64,
}

impl<'a> ToldOptions<'a> {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first one that means nothing.
    pub fn parse(arguments: impl Iterator<Item = &'a str>) -> Result<Self, BadArgument<'a>> {
        let options = Self {
            file: "/told",
            pages: 1024,
        };
        set_each(options, arguments, |options, argument| {
            let (name, value) = argument.split_once('=')?;
            match name {
                "file" => options.file = value,
                "pages" => options.pages = value.parse().ok().filter(|pages| *pages > 0)?,
                _ => return None,
            }
            Some(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_told_is_understood_within_its_range() {
        let expected = ToldOptions { file: "/f", pages: 7 };
        assert_eq!(ToldOptions::parse("file=/f pages=7".split(' ')), Ok(expected));
        for bad in ["pages=0", "file", "stay"] {
            assert_eq!(ToldOptions::parse([bad].into_iter()), Err(BadArgument(bad)));
        }
    }
}
