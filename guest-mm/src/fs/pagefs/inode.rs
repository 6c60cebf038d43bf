//! Inodes and their extents.

use alloc::vec::Vec;

use super::pointers::MAP_POINTERS;
use super::{Block, FormatError, Pointer, long, put_long, put_word, word};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE};

/// Bytes of an inode.
pub(super) const INODE_BYTES: usize = 256;
/// Inodes of a block.
pub(super) const INODES_PER_BLOCK: u32 = 16;
const _: () = assert!(INODES_PER_BLOCK as usize * INODE_BYTES == PAGE_BYTES);
/// Extents that an inode has room for.
pub(super) const INLINE_EXTENTS: usize = (INODE_BYTES - 32) / 8;
/// Extents that an extent block has room for.
pub(super) const BLOCK_EXTENTS: usize = (PAGE_BYTES - 8) / 8;

/// Number of an inode: 1 to 8191.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InodeNr(u32);

impl InodeNr {
    /// The root directory.
    pub const ROOT: Self = Self(1);
    /// One more than the largest number.
    pub const END: u32 = 8192;

    /// `None` for 0 and for numbers beyond the inode map.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number >= Self::END {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Which pointer of the map leads to its block.
    pub(super) const fn map_index(self) -> usize {
        (self.0 / INODES_PER_BLOCK) as usize
    }

    /// Where it begins in its block.
    pub(super) const fn offset(self) -> usize {
        (self.0 % INODES_PER_BLOCK) as usize * INODE_BYTES
    }
}

const _: () = assert!(InodeNr::END as usize == MAP_POINTERS * INODES_PER_BLOCK as usize);

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Bytes.
    File,
    /// Names.
    Directory,
}

/// A run of a file's blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Its first block; 0 for a hole, which reads as zeroes.
    pub first: u32,
    /// How many blocks, at least 1.
    pub len: u32,
}

impl Extent {
    /// Its blocks from one to another, counted from its first.
    pub(super) fn part(self, from: u32, to: u32) -> Self {
        let first = if self.first == 0 { 0 } else { self.first + from };
        Self {
            first,
            len: to - from,
        }
    }
}

/// What an inode says. Extents beyond the first 28 are in extent blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Names that lead to it.
    pub nr_links: u32,
    /// Bytes.
    pub size: u64,
    /// All its extents. They cover `size`; while it is in memory they may have blocks beyond, which are not written to the disk.
    pub extents: Vec<Extent>,
    /// Extent blocks, in order.
    pub(super) overflow: Vec<u32>,
}

/// An inode as it is in its block: the first of its extents, and where the others are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RawInode {
    pub(super) kind: Kind,
    pub(super) nr_links: u32,
    pub(super) size: u64,
    pub(super) nr_extents: u32,
    pub(super) more: Option<Pointer>,
    pub(super) extents: Vec<Extent>,
}

impl Inode {
    /// Without any contents.
    pub const fn empty(kind: Kind) -> Self {
        Self {
            kind,
            nr_links: 1,
            size: 0,
            extents: Vec::new(),
            overflow: Vec::new(),
        }
    }

    /// The block with page `index` of the file. `None` for a hole, and beyond the end.
    pub fn block_of(&self, index: u64) -> Option<u32> {
        let mut before = 0;
        for extent in &self.extents {
            let end = before + u64::from(extent.len);
            if index < end {
                let offset = u32::try_from(index - before).ok()?;
                return (extent.first != 0).then(|| extent.first + offset);
            }
            before = end;
        }
        None
    }

    /// Adds a block behind the last one; 0 for a hole of one block.
    pub fn push_block(&mut self, block: u32) {
        if let Some(last) = self.extents.last_mut() {
            let continues = if last.first == 0 {
                block == 0
            } else {
                last.first + last.len == block
            };
            if continues {
                last.len += 1;
                return;
            }
        }
        self.extents.push(Extent { first: block, len: 1 });
    }

    /// How many pages its extents cover.
    pub(super) fn covered(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.len)).sum()
    }

    /// As it is to be on the disk: without the blocks beyond its size, and with holes in the place of `hidden` pages, in order.
    pub(super) fn on_disk(&self, hidden: &[u64]) -> Self {
        let mut inode = Self {
            extents: Vec::new(),
            overflow: Vec::new(),
            ..*self
        };
        let (mut at, mut left) = (0, self.size.div_ceil(PAGE_SIZE));
        for extent in &self.extents {
            let len = u32::try_from(left).unwrap_or(u32::MAX).min(extent.len);
            let end = at + u64::from(len);
            let first = hidden.partition_point(|page| *page < at);
            let here = hidden[first..].iter().take_while(|page| **page < end);
            let mut done = 0;
            for page in here.filter(|_| extent.first != 0) {
                let before = u32::try_from(page - at).unwrap_or(len);
                inode.push(extent.part(done, before));
                inode.push(Extent { first: 0, len: 1 });
                done = before + 1;
            }
            inode.push(extent.part(done, len));
            left -= u64::from(len);
            at = end;
        }
        inode
    }

    /// Adds an extent behind the last one, as a part of it if it continues it. One of no length is none.
    pub(super) fn push(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        if let Some(last) = self.extents.last_mut() {
            let both_holes = last.first == 0 && extent.first == 0;
            let continues = last.first != 0 && last.first + last.len == extent.first;
            if (both_holes || continues)
                && let Some(len) = last.len.checked_add(extent.len)
            {
                last.len = len;
                return;
            }
        }
        self.extents.push(extent);
    }

    /// Its blocks with data, in order, without holes.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        let extents = self.extents.iter().filter(|extent| extent.first != 0);
        extents.flat_map(|extent| extent.first..extent.first + extent.len)
    }

    /// Writes it to its place in an inode block.
    pub(super) fn put(&self, more: Option<Pointer>, bytes: &mut [u8]) {
        bytes.fill(0);
        bytes[0] = match self.kind {
            Kind::File => 1,
            Kind::Directory => 2,
        };
        put_word(bytes, 4, self.nr_links);
        put_long(bytes, 8, self.size);
        put_word(bytes, 16, u32::try_from(self.extents.len()).unwrap_or(u32::MAX));
        if let Some(more) = more {
            more.put(bytes, 24);
        }
        put_extents(&mut bytes[32..], self.extents.iter().take(INLINE_EXTENTS));
    }
}

impl RawInode {
    /// Reads one. `None` for a free one.
    pub(super) fn at(bytes: &[u8], number: InodeNr) -> Result<Option<Self>, FormatError> {
        let kind = match bytes[0] {
            0 => return Ok(None),
            1 => Kind::File,
            2 => Kind::Directory,
            _ => return Err(FormatError::Inode(number.number())),
        };
        let nr_extents = word(bytes, 16);
        let inline = usize::try_from(nr_extents).map_or(INLINE_EXTENTS, |nr| nr.min(INLINE_EXTENTS));
        Ok(Some(Self {
            kind,
            nr_links: word(bytes, 4),
            size: long(bytes, 8),
            nr_extents,
            more: Pointer::at(bytes, 24),
            extents: extents(&bytes[32..], inline),
        }))
    }

    /// With the extents of the extent blocks, which were these.
    pub(super) fn complete(
        self,
        number: InodeNr,
        overflow: Vec<u32>,
        nr_blocks: u32,
    ) -> Result<Inode, FormatError> {
        let damaged = FormatError::Inode(number.number());
        let mut covered = 0_u64;
        for extent in &self.extents {
            let end = extent.first.checked_add(extent.len);
            let inside = extent.first == 0 || (extent.first >= 2 && end.is_some_and(|end| end <= nr_blocks));
            if !inside {
                return Err(FormatError::OutOfRange(extent.first));
            }
            if extent.len == 0 {
                return Err(damaged);
            }
            covered += u64::from(extent.len);
        }
        let fits = self.extents.len() == self.nr_extents as usize && covered == self.size.div_ceil(PAGE_SIZE);
        let whole = self.kind == Kind::File || self.size.is_multiple_of(PAGE_SIZE);
        if !fits || !whole {
            return Err(damaged);
        }
        Ok(Inode {
            kind: self.kind,
            nr_links: self.nr_links,
            size: self.size,
            extents: self.extents,
            overflow,
        })
    }
}

/// An extent block: these extents, and where the next block is.
pub(super) fn extent_block(extents: &[Extent], next: Option<Pointer>) -> Block {
    let mut block = [0; PAGE_BYTES];
    if let Some(next) = next {
        next.put(&mut block, 0);
    }
    put_extents(&mut block[8..], extents.iter().take(BLOCK_EXTENTS));
    block
}

/// The first extents, as many as are named.
pub(super) fn extents(bytes: &[u8], nr: usize) -> Vec<Extent> {
    let pairs = bytes.chunks_exact(8).take(nr);
    pairs
        .map(|pair| Extent {
            first: word(pair, 0),
            len: word(pair, 4),
        })
        .collect()
}

fn put_extents<'a>(bytes: &mut [u8], extents: impl Iterator<Item = &'a Extent>) {
    for (pair, extent) in bytes.chunks_exact_mut(8).zip(extents) {
        put_word(pair, 0, extent.first);
        put_word(pair, 4, extent.len);
    }
}
