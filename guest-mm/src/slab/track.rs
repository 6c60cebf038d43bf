//! Who used an object last: a place in the source and a CPU, in one word that fits behind the object.

use core::fmt;
use core::panic::Location;

use guest_sync::{Cpu, SpinLock};

/// A place in the source, and the CPU that was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Track {
    /// Source file.
    pub file: &'static str,
    /// Line in it.
    pub line: u32,
    /// The CPU's number.
    pub cpu: u8,
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} on CPU {}", self.file, self.line, self.cpu)
    }
}

/// Names of source files, by number: a word has room for a number.
#[derive(Debug)]
pub(crate) struct Files(SpinLock<[&'static str; 64]>);

impl Files {
    pub(crate) fn new() -> Self {
        Self(SpinLock::new([""; 64]))
    }

    /// Bits 0 to 31: line. 32 to 39: CPU. 40 to 47: number of the file plus 1; 0 when there are too many files.
    pub(crate) fn encode(&self, cpu: &Cpu, place: &Location<'static>) -> u64 {
        let file = place.file();
        let mut files = self.0.lock();
        let known = files.iter().position(|&name| name.is_empty() || name == file);
        let number = known.map_or(0, |at| {
            files[at] = file;
            at as u64 + 1
        });
        u64::from(place.line()) | u64::from(cpu.id().number()) << 32 | number << 40
    }

    /// The meaning of a word that [`encode`](Self::encode) made; `None` for most others.
    pub(crate) fn decode(&self, word: u64) -> Option<Track> {
        let number = usize::try_from(word >> 40).ok()?;
        let file = *self.0.lock().get(number.checked_sub(1)?)?;
        (!file.is_empty()).then_some(Track {
            file,
            line: (word & 0xffff_ffff) as u32,
            cpu: (word >> 32 & 0xff) as u8,
        })
    }
}
