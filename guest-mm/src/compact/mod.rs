#![doc = include_str!("README.md")]

mod defer;
mod direct;
mod index;
mod run;
mod scan;
mod source;

use core::fmt;

pub(crate) use defer::Deferral;
pub(crate) use run::Runner;
pub use run::{Compaction, Goal};
pub(crate) use source::Source;

/// When memory is compacted for huge pages (Linux `/sys/kernel/mm/transparent_hugepage/defrag`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Defrag {
    /// `always`: by the fault that wants one, and by the daemon.
    Always,
    /// `defer`: only by the daemon, for those who come later.
    Defer,
    /// `never`.
    Never,
}

/// What a run of compaction came to (Linux `enum compact_result`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CompactResult {
    /// `COMPACT_SKIPPED`: nothing was done. There is such a chunk, or too little free memory to make one.
    Skipped,
    /// `COMPACT_DEFERRED`: nothing was done, because earlier runs came to nothing.
    Deferred,
    /// `COMPACT_COMPLETE`: the scanners met before the goal was reached.
    Complete,
    /// `COMPACT_SUCCESS`: the goal is reached.
    Success,
}

impl fmt::Display for CompactResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skipped => "skipped",
            Self::Deferred => "deferred",
            Self::Complete => "complete",
            Self::Success => "success",
        })
    }
}
