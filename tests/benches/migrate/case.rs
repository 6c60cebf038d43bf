//! What is unplugged: how full the GiB is, of which pages, how they get off it, and on how many CPUs.

use std::fmt;

/// How much of the GiB is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fill {
    /// Nothing, any more.
    Free,
    /// Every second run of 16 pages.
    Half,
    /// All of it.
    Full,
}

impl Fill {
    /// The share that the program keeps.
    pub(crate) const fn percent(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Half => 50,
            Self::Full => 100,
        }
    }
}

/// A case. Its text is what rows are called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) fill: Fill,
    /// Whether the program's pages are of 2 MiB.
    pub(crate) is_huge: bool,
    /// As in `migrate=`.
    pub(crate) method: &'static str,
    pub(crate) cpus: u8,
}

const fn case(fill: Fill, method: &'static str) -> Case {
    Case {
        fill,
        is_huge: false,
        method,
        cpus: 2,
    }
}

/// Nothing has to get off a free GiB, so that one method stands for all.
pub(crate) const ALL: [Case; 9] = [
    case(Fill::Free, "combined"),
    case(Fill::Half, "remap"),
    case(Fill::Half, "combined"),
    case(Fill::Half, "swapout"),
    case(Fill::Full, "remap"),
    case(Fill::Full, "combined"),
    case(Fill::Full, "swapout"),
    Case {
        is_huge: true,
        ..case(Fill::Full, "remap")
    },
    Case {
        cpus: 1,
        ..case(Fill::Full, "remap")
    },
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fill {
            Fill::Free => write!(f, "free")?,
            Fill::Half => write!(f, "half full, {}", self.method)?,
            Fill::Full => write!(f, "full, {}", self.method)?,
        }
        if self.is_huge {
            write!(f, ", huge pages")?;
        }
        if self.cpus == 1 {
            write!(f, ", 1 CPU")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
