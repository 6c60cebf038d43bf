//! System calls for files: what programs and the manager share about them.
//!
//! They are made as the others ([`crate::abi`]), with a fourth argument in r10. A path is an address and a number of bytes; names are
//! between slashes, from the root directory on. A file that was opened is known by a *descriptor*, from 3 on; a fork's child has its
//! parent's, and both have one position between them.

/// Most bytes of a path.
pub const MAX_PATH: usize = 512;
/// Offset that stands for the file's position, which moves on then.
pub const AT_POSITION: u64 = u64::MAX;
/// The first descriptor.
pub const FIRST_DESCRIPTOR: u64 = 3;

/// The calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum FileCall {
    /// `(path, bytes, flags)`: opens a file, as [`open`] says; returns a descriptor.
    Open = 64,
    /// `(descriptor)`: gives it up.
    Close = 65,
    /// `(descriptor, address, bytes, offset)`: reads; returns how many bytes, 0 at the end.
    Read = 66,
    /// `(descriptor, address, bytes, offset)`: writes; returns how many bytes.
    Write = 67,
    /// `(descriptor, position)`: what is read or written next; returns it. [`AT_POSITION`] stands for the end of the file.
    Seek = 68,
    /// `(descriptor)`: returns when all of the file is on the disk.
    Sync = 69,
    /// `(path, bytes)`: takes a name away: of a file, or of a directory without names in it.
    Remove = 70,
    /// `(path, bytes)`: makes a directory.
    MakeDirectory = 71,
    /// `(path, bytes, address, nth)`: stores the name with that number in a directory, from 0 on; returns how many bytes it has, 0
    /// behind the last. There must be room for [`MAX_NAME`] bytes.
    ReadDirectory = 72,
    /// `(path, bytes, address)`: stores a [`Stat`] there.
    Stat = 73,
    /// `(descriptor, bytes)`: makes the file so long.
    SetSize = 74,
    /// `(descriptor, offset, bytes, flags)`: maps a part of the file, as [`map`] says; returns its address. The offset is a multiple of
    /// 4096. The area stays when the descriptor is given up.
    Map = 75,
    /// `(address)`: returns when what is in the file that is mapped there is on the disk, and what was stored to it.
    SyncMapping = 76,
    /// `()`: returns when everything is on the disk.
    SyncAll = 77,
}

/// Most bytes of a name.
pub const MAX_NAME: usize = 59;

/// Flags of [`FileCall::Open`].
pub mod open {
    /// A file that is not there is made.
    pub const CREATE: u64 = 1;
    /// What is in it is lost.
    pub const TRUNCATE: u64 = 2;
    /// Each write goes to its end.
    pub const APPEND: u64 = 4;
    /// What is read and written goes straight between the disk and the program's memory (`O_DIRECT`): address, length and offset are
    /// multiples of 4096, and the memory is the program's own, to be written to. Not for files without a disk.
    pub const DIRECT: u64 = 8;
}

/// Flags of [`FileCall::Map`].
pub mod map {
    /// Stores are seen by all who map or read the file, and by the file.
    pub const SHARED: u64 = 1;
    /// There may be stores.
    pub const WRITE: u64 = 2;
}

/// What a path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// 1 for a directory.
    pub is_directory: u64,
    /// Names that lead to it.
    pub nr_links: u64,
    /// Number of its inode.
    pub inode: u64,
}

/// Words of a [`Stat`].
pub const STAT_WORDS: usize = 4;

impl Stat {
    /// As it lies in memory, word by word.
    pub const fn to_words(self) -> [u64; STAT_WORDS] {
        [self.size, self.is_directory, self.nr_links, self.inode]
    }

    /// Out of its words.
    pub const fn from_words(words: [u64; STAT_WORDS]) -> Self {
        let [size, is_directory, nr_links, inode] = words;
        Self {
            size,
            is_directory,
            nr_links,
            inode,
        }
    }
}

impl FileCall {
    const ALL: [Self; 14] = [
        Self::Open,
        Self::Close,
        Self::Read,
        Self::Write,
        Self::Seek,
        Self::Sync,
        Self::Remove,
        Self::MakeDirectory,
        Self::ReadDirectory,
        Self::Stat,
        Self::SetSize,
        Self::Map,
        Self::SyncMapping,
        Self::SyncAll,
    ];

    /// The call with that number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u64 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Call;

    #[test]
    fn calls_for_files_have_numbers_of_their_own() {
        for (number, call) in (64..).zip(FileCall::ALL) {
            assert_eq!(FileCall::from_number(number), Some(call));
            assert_eq!(Call::from_number(number), None);
        }
        assert_eq!(FileCall::from_number(78), None);
    }
}
