//! Names made and taken away in directories of the real file system, while its caches of names and inodes are shrunk and its disk fails.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::backing::Fs;
use super::executor::pause;
use super::pagefs::PageFs;
use super::{Sim, count};
use crate::fs::mounted::{File, Missing, WriteAt};
use crate::fs::pagefs::{FsError, Kind};
use crate::mm::mapping::{FileError, ReadAhead};

const DIRECTORIES: usize = 2;
const NAMES: u64 = 5;

/// One directory: what should be in it.
#[derive(Default)]
struct Directory {
    /// Somebody is at work in it.
    is_busy: Cell<bool>,
    /// `None` if it is not there. What each of its files has in it: as it is not known whether an error left something, or nothing.
    names: RefCell<Option<BTreeMap<u64, Vec<u64>>>>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Names {
    directories: [Directory; DIRECTORIES],
    stamp: Cell<u64>,
    /// Pages of files that could not be written, or were lost.
    nr_lost: Cell<u64>,
}

fn path_of(directory: usize, name: Option<u64>) -> String {
    match name {
        None => format!("d{directory}"),
        Some(name) => format!("d{directory}/n{name}"),
    }
}

impl Names {
    /// A page of one of these files could not be written: it may be as it was on the disk, where it was nothing or anything older.
    pub(super) fn lost(&self) {
        self.nr_lost.set(self.nr_lost.get() + 1);
        for directory in &self.directories {
            let mut names = directory.names.borrow_mut();
            for contents in names.iter_mut().flat_map(BTreeMap::values_mut) {
                contents.extend(0..=self.stamp.get());
            }
        }
    }
}

impl Sim<'_> {
    /// One system call that has to do with names.
    pub(super) async fn use_names(&self) {
        let Fs::Page(fs) = &self.fs else { return };
        let at = usize::try_from(self.below(DIRECTORIES as u64)).unwrap();
        let directory = &self.names.directories[at];
        while directory.is_busy.replace(true) {
            pause().await;
        }
        let name = self.below(NAMES);
        let done = match self.below(8) {
            0 | 1 => self.make_directory(fs, at).await,
            2 => self.remove_directory(fs, at).await,
            3 | 4 => self.create(fs, at, name).await,
            5 => self.remove_name(fs, at, name).await,
            _ => self.look(fs, at, name).await,
        };
        match done {
            Ok(()) => count(&self.seen.names, 1),
            Err(FsError::Io) => {
                self.io_error(fs.has_failed.get());
                self.find_out(fs, at).await;
            }
            Err(error) => panic!("{error}"),
        }
        directory.is_busy.set(false);
    }

    async fn make_directory(&self, fs: &PageFs<'_>, at: usize) -> Result<(), FsError> {
        let made = self
            .failing(fs.mounted.make_directory(path_of(at, None).as_bytes()))
            .await;
        let mut names = self.names.directories[at].names.borrow_mut();
        match made {
            Ok(()) => {
                assert!(names.is_none(), "directory {at} is there twice");
                *names = Some(BTreeMap::new());
                Ok(())
            }
            Err(FsError::Exists(_)) => {
                assert!(names.is_some(), "directory {at} is there");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn remove_directory(&self, fs: &PageFs<'_>, at: usize) -> Result<(), FsError> {
        let removed = self
            .failing(fs.mounted.remove(path_of(at, None).as_bytes()))
            .await;
        let mut names = self.names.directories[at].names.borrow_mut();
        let should = names.as_ref().map(BTreeMap::is_empty);
        match removed {
            Ok(()) => {
                assert_eq!(should, Some(true), "directory {at} is gone");
                *names = None;
                Ok(())
            }
            Err(FsError::NotFound) => {
                assert_eq!(should, None, "directory {at} is not found");
                Ok(())
            }
            Err(FsError::NotEmpty(_)) => {
                assert_eq!(should, Some(false), "directory {at} is not empty");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a name, new or not, and writes a word to the file.
    async fn create(&self, fs: &PageFs<'_>, at: usize, name: u64) -> Result<(), FsError> {
        let path = path_of(at, Some(name));
        let opened = self
            .failing(fs.mounted.open(path.as_bytes(), Missing::Create))
            .await;
        let file = match opened {
            Ok(file) => file,
            Err(FsError::NotFound) => {
                let names = self.names.directories[at].names.borrow();
                assert!(names.is_none(), "directory {at} is not found");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.names.stamp.set(self.names.stamp.get() + 1);
        let stamp = self.names.stamp.get();
        let known = |change: &dyn Fn(&mut Vec<u64>)| {
            let mut names = self.names.directories[at].names.borrow_mut();
            let names = names.as_mut().expect("the directory of a file is there");
            change(names.entry(name).or_insert_with(|| std::vec![0]));
        };
        known(&|contents| contents.push(stamp));
        let from = |done: usize, piece: &mut [u8]| {
            piece.copy_from_slice(&stamp.to_ne_bytes()[done..done + piece.len()]);
            Ok(())
        };
        let nr_lost = self.names.nr_lost.get();
        let write = fs.mounted.write(&file, (WriteAt::Offset(0), 8), from);
        match self.failing(write).await {
            // What was written may be lost already.
            Ok(_) if self.names.nr_lost.get() > nr_lost => {}
            Ok(_) => known(&|contents| *contents = std::vec![stamp]),
            Err(FileError::Io) => self.io_error(fs.has_failed.get()),
            Err(FileError::OutOfMemory) => {}
            Err(error) => panic!("{error}"),
        }
        fs.mounted.close(&file).await;
        Ok(())
    }

    /// Takes a name away, some times while its file is open: its contents stay as long as that.
    async fn remove_name(&self, fs: &PageFs<'_>, at: usize, name: u64) -> Result<(), FsError> {
        let path = path_of(at, Some(name));
        let open = match self.one_in(2) {
            true => fs.mounted.open(path.as_bytes(), Missing::Fail).await.ok(),
            false => None,
        };
        let removed = self.failing(fs.mounted.remove(path.as_bytes())).await;
        let nr_lost = self.names.nr_lost.get();
        let contents = {
            let mut names = self.names.directories[at].names.borrow_mut();
            match removed {
                Ok(()) => names.as_mut().and_then(|names| names.remove(&name)),
                _ => names.as_ref().and_then(|names| names.get(&name).cloned()),
            }
        };
        match removed {
            Ok(()) => assert!(contents.is_some(), "{path} was there"),
            Err(FsError::NotFound) => assert!(contents.is_none(), "{path} is not found"),
            Err(_) => {}
        }
        if let (Some(file), Some(contents)) = (open, contents) {
            pause().await;
            self.compare(fs, &file, (&contents, nr_lost)).await;
            fs.mounted.close(&file).await;
        }
        removed.or_else(|error| match error {
            FsError::NotFound => Ok(()),
            error => Err(error),
        })
    }

    /// What is in a file, and what was known of it when so many pages had been lost.
    async fn compare(&self, fs: &PageFs<'_>, file: &File, (contents, nr_lost): (&[u64], u64)) {
        let mut word = [0; 8];
        let to = |done: usize, piece: &[u8]| {
            word[done..done + piece.len()].copy_from_slice(piece);
            Ok(())
        };
        let mut ahead = ReadAhead::default();
        let read = fs.mounted.read(file, &mut ahead, (0, 8), to);
        match self.failing(read).await {
            Ok(_) => {
                let found = u64::from_ne_bytes(word);
                let is_known = self.names.nr_lost.get() == nr_lost;
                assert!(
                    !is_known || contents.contains(&found),
                    "a file has {found}, and should have {contents:?}"
                );
            }
            Err(FileError::Io) => self.io_error(fs.has_failed.get()),
            Err(FileError::OutOfMemory) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// What a name leads to, and all names of its directory.
    async fn look(&self, fs: &PageFs<'_>, at: usize, name: u64) -> Result<(), FsError> {
        let path = path_of(at, Some(name));
        let found = self.failing(fs.mounted.stat(path.as_bytes())).await;
        let nr_lost = self.names.nr_lost.get();
        let known = self.names.directories[at].names.borrow().clone();
        let contents = known.as_ref().and_then(|names| names.get(&name));
        match (found, contents) {
            (Ok(entry), Some(contents)) => {
                assert_eq!((entry.kind, entry.nr_links), (Kind::File, 1), "{path}");
                let file = fs.mounted.open(path.as_bytes(), Missing::Fail).await?;
                self.compare(fs, &file, (contents, nr_lost)).await;
                fs.mounted.close(&file).await;
            }
            (Err(FsError::NotFound), None) => {}
            (Err(FsError::Io), _) => return Err(FsError::Io),
            (found, contents) => panic!("{path} is {found:?}, and should be {contents:?}"),
        }
        assert_eq!(
            self.list(fs, at).await?,
            known.map(|names| names.into_keys().collect())
        );
        Ok(())
    }

    /// The names in a directory, if it is there.
    async fn list(&self, fs: &PageFs<'_>, at: usize) -> Result<Option<Vec<u64>>, FsError> {
        let listed = self.failing(fs.mounted.list(path_of(at, None).as_bytes())).await;
        let listed = match listed {
            Ok(listed) => listed,
            Err(FsError::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let number = |name: &[u8]| core::str::from_utf8(&name[1..]).unwrap().parse().unwrap();
        let mut names: Vec<u64> = listed.iter().map(|(name, _)| number(name.as_bytes())).collect();
        names.sort_unstable();
        Ok(Some(names))
    }

    /// After an error of the disk: what was to be done was done, or not.
    async fn find_out(&self, fs: &PageFs<'_>, at: usize) {
        let found = loop {
            self.mend();
            match self.list(fs, at).await {
                Ok(found) => break found,
                Err(FsError::Io) => self.io_error(fs.has_failed.get()),
                Err(error) => panic!("{error}"),
            }
            pause().await;
        };
        let mut names = self.names.directories[at].names.borrow_mut();
        let before = names.clone();
        let keys = |names: &Option<BTreeMap<u64, Vec<u64>>>| names.as_ref().map(|names| names.len());
        let nr = found.as_ref().map(Vec::len);
        let changed = keys(&before).unwrap_or(0).abs_diff(nr.unwrap_or(0));
        assert!(
            changed <= 1,
            "one name was to change: {found:?} are left of {before:?}"
        );
        *names = found.map(|found| {
            let contents = |name: u64| {
                let known = before.as_ref().and_then(|names| names.get(&name).cloned());
                known.unwrap_or_else(|| std::vec![0])
            };
            found.into_iter().map(|name| (name, contents(name))).collect()
        });
    }

    /// All of them go.
    pub(super) async fn remove_names(&self, fs: &PageFs<'_>) {
        for at in 0..DIRECTORIES {
            let names = self.names.directories[at].names.take();
            for name in names.iter().flat_map(BTreeMap::keys) {
                let path = path_of(at, Some(*name));
                fs.mounted.remove(path.as_bytes()).await.unwrap();
            }
            let removed = fs.mounted.remove(path_of(at, None).as_bytes()).await;
            assert_eq!(removed.is_ok(), names.is_some(), "directory {at}: {removed:?}");
        }
    }
}
