//! What users of caches do wrong, and the journal in which it is written down.

use core::fmt;

use guest_sync::SpinLock;

use super::object::ObjAddr;
use super::track::Track;

/// Bytes shown of a damaged place.
pub const SHOWN: usize = 16;

/// A broken rule. Only [`Misuse::Damaged`] lets the call that noticed it go on: of the others nothing was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misuse {
    /// Freed, although it is free.
    DoubleFree {
        /// Name of its cache.
        cache: &'static str,
        /// The object.
        object: ObjAddr,
        /// Who freed it before, in debug mode.
        freed: Option<Track>,
    },
    /// Freed to a cache that it does not come from.
    WrongCache {
        /// Name of the cache that it was freed to.
        cache: &'static str,
        /// The object.
        object: ObjAddr,
        /// Name of its own cache.
        owner: &'static str,
    },
    /// Freed, although it lies in no slab.
    Foreign {
        /// Name of the cache that it was freed to; `kfree` if to none in particular.
        cache: &'static str,
        /// The address.
        object: ObjAddr,
    },
    /// Freed, although no object starts there.
    Misaligned {
        /// Name of the cache.
        cache: &'static str,
        /// The address.
        object: ObjAddr,
        /// First byte of the first object of the slab that it lies in.
        first: ObjAddr,
    },
    /// Something was written where nothing should be. The object was restored, and is used on.
    Damaged(Damage),
}

/// Bytes that were overwritten. In debug mode only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Name of the cache.
    pub cache: &'static str,
    /// The object.
    pub object: ObjAddr,
    /// What must have happened.
    pub kind: DamageKind,
    /// First damaged byte, counted from the object's first: negative in front of it.
    pub offset: i64,
    /// From the first damaged byte to the last.
    pub nr_bytes: u32,
    /// What should be there: the first `nr_bytes` of these, or all.
    pub expected: [u8; SHOWN],
    /// What is there.
    pub found: [u8; SHOWN],
    /// Who took the object last.
    pub taken: Option<Track>,
    /// Who freed it last.
    pub freed: Option<Track>,
}

/// Kinds of [`Damage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamageKind {
    /// In front of an object.
    Underrun,
    /// Behind an object.
    Overrun,
    /// Inside or around an object that is free.
    UseAfterFree,
}

impl Damage {
    fn shown(&self) -> usize {
        SHOWN.min(self.nr_bytes as usize)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, object, .. } = self;
        let kind = match self.kind {
            DamageKind::Underrun => "written in front of it",
            DamageKind::Overrun => "written beyond its end",
            DamageKind::UseAfterFree => "written after it was freed",
        };
        write!(f, "cache {cache}: object {object}: {kind}: ")?;
        write!(f, "{} bytes at offset {}: expected", self.nr_bytes, self.offset)?;
        for byte in &self.expected[..self.shown()] {
            write!(f, " {byte:02x}")?;
        }
        f.write_str(", found")?;
        for byte in &self.found[..self.shown()] {
            write!(f, " {byte:02x}")?;
        }
        for (what, track) in [("taken", self.taken), ("freed", self.freed)] {
            if let Some(track) = track {
                write!(f, "; last {what} at {track}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoubleFree { cache, object, freed } => {
                write!(f, "cache {cache}: object {object}: freed twice")?;
                freed.map_or(Ok(()), |track| write!(f, "; before at {track}"))
            }
            Self::WrongCache { cache, object, owner } => {
                write!(
                    f,
                    "cache {cache}: object {object}: freed here, belongs to cache {owner}"
                )
            }
            Self::Foreign { cache, object } => {
                write!(f, "cache {cache}: {object} was freed, but lies in no slab")
            }
            Self::Misaligned { cache, object, first } => {
                write!(
                    f,
                    "cache {cache}: {object} was freed, but no object starts there; the slab's first is {first}"
                )
            }
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

impl core::error::Error for Misuse {}

/// Entries that the journal keeps until they are read.
const KEPT: usize = 32;

/// The last misuses that were noticed. Writing to it needs no memory.
#[derive(Debug)]
pub(crate) struct Journal(SpinLock<Entries>);

#[derive(Debug)]
struct Entries {
    ring: [Option<Misuse>; KEPT],
    /// Number of the next entry; its place is the remainder.
    next: usize,
    /// Number of the oldest that was not read.
    unread: usize,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self(SpinLock::new(Entries {
            ring: [None; KEPT],
            next: 0,
            unread: 0,
        }))
    }

    #[cold]
    pub(crate) fn write(&self, misuse: Misuse) -> Misuse {
        let mut entries = self.0.lock();
        let at = entries.next % KEPT;
        entries.ring[at] = Some(misuse);
        entries.next += 1;
        entries.unread = entries.unread.max(entries.next.saturating_sub(KEPT));
        misuse
    }

    pub(crate) fn read(&self) -> Option<Misuse> {
        let mut entries = self.0.lock();
        if entries.unread == entries.next {
            return None;
        }
        let at = entries.unread % KEPT;
        entries.unread += 1;
        entries.ring[at]
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.lock().next as u64
    }
}
