//! File systems, and the caches that they share.
//!
//! [`pagefs`] is a file system on a disk, [`mounted`] the same in use, over the page cache. In memory its names are in a [`NameCache`] and its
//! files in an [`InodeCache`], whose objects are slab objects in the kernel and which both give memory back when it is short. Its
//! metadata is behind a [`Gate`]. [`Tmpfs`] is one without a disk.

mod gate;
mod inodes;
mod lru_table;
pub mod mounted;
mod names;
pub mod pagefs;
mod ram_pages;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod tmpfs;

pub use gate::{Gate, GateGuard};
pub use inodes::{Evict, InodeCache, InodeShrinker, InodeStat, Node};
pub use mounted::{Keep, Machine, Mounted};
pub use names::{Dentry, Known, NameCache, NameStat};
#[cfg(test)]
pub(crate) use ram_pages::RamPages;
pub use store::{Heap, Store, per_frame};
pub use tmpfs::{NameError, TmpFile, Tmpfs};
