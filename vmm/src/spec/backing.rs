//! `--backing` and its like in `--hotplug`: what host memory stands behind guest memory, and when it is got.

use std::fmt;

use super::error::SpecError;
use super::size::{GIB, MIB};

/// The kind of host memory behind boot memory or a hot-plug region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory, in transparent huge pages where the kernel finds some.
    #[default]
    Anonymous,
    /// A file in memory (memfd_create(2)) that other processes can be handed. In huge pages only where the host's
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` allows them.
    Memfd,
    /// Pages of the host's reserved pool (`vm.nr_hugepages`), which are never split, swapped or taken by anybody else.
    Hugetlbfs(HugePage),
}

/// A size of reserved huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugePage {
    /// 2 MiB.
    Mib2,
    /// 1 GiB.
    Gib1,
}

/// When a plugged block gets its pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PageSupply {
    /// One by one, as the guest touches them.
    #[default]
    OnTouch,
    /// All when it is plugged; a block that the host cannot back is not plugged. Huge pages of hugetlbfs are always
    /// supplied so.
    AtPlug,
}

impl HugePage {
    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Mib2 => 2 * MIB,
            Self::Gib1 => GIB,
        }
    }
}

impl Backing {
    /// The unit, in bytes, in which the host gives such memory and takes it back: blocks and boot memory are multiples.
    #[must_use]
    pub const fn page_size(self) -> u64 {
        match self {
            Self::Anonymous | Self::Memfd => 4096,
            Self::Hugetlbfs(page) => page.bytes(),
        }
    }

    /// Reads what `option` says.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn parse(option: &'static str, text: &str) -> Result<Self, SpecError> {
        match text {
            "anonymous" => Ok(Self::Anonymous),
            "memfd" => Ok(Self::Memfd),
            "hugetlbfs" | "hugetlbfs:2M" => Ok(Self::Hugetlbfs(HugePage::Mib2)),
            "hugetlbfs:1G" => Ok(Self::Hugetlbfs(HugePage::Gib1)),
            _ => Err(SpecError::Choice {
                option,
                value: text.to_owned(),
                allowed: "anonymous, memfd, hugetlbfs, hugetlbfs:2M, hugetlbfs:1G",
            }),
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Memfd => "memfd",
            Self::Hugetlbfs(HugePage::Mib2) => "hugetlbfs:2M",
            Self::Hugetlbfs(HugePage::Gib1) => "hugetlbfs:1G",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for backing in [
            Backing::Anonymous,
            Backing::Memfd,
            Backing::Hugetlbfs(HugePage::Mib2),
            Backing::Hugetlbfs(HugePage::Gib1),
        ] {
            assert_eq!(Backing::parse("--backing", &backing.to_string()), Ok(backing));
        }
        assert_eq!(
            Backing::parse("--backing", "hugetlbfs"),
            Ok(Backing::Hugetlbfs(HugePage::Mib2))
        );
    }

    #[test]
    fn other_words_are_refused_with_the_option() {
        for text in ["", "anon", "hugetlbfs:4M", "Memfd"] {
            let error = Backing::parse("--backing", text).expect_err("no backing");
            assert_eq!(
                error.to_string(),
                format!("--backing {text:?}: one of anonymous, memfd, hugetlbfs, hugetlbfs:2M, hugetlbfs:1G")
            );
        }
    }
}
