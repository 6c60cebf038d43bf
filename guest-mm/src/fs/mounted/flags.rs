//! What a mount may be told, in the words of Linux' `rootflags=`.

use alloc::string::String;
use core::error::Error;
use core::fmt;
use core::str::FromStr;

use crate::mm::mapping::Migration;

/// How a file system is mounted. Read from words with commas between them; the last of a kind counts.
///
/// `migrate=data` (the default): a page moves with its block number, and nothing is written for it. `migrate=default`: this file system has no
/// method of its own, as many have none: a dirty page is written first, and each moves without its block number, which is looked up when
/// somebody stores to it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountFlags {
    migration: Migration,
}

impl MountFlags {
    /// How pages with private data move.
    pub(super) const fn migration(self) -> Migration {
        self.migration
    }
}

impl Default for MountFlags {
    fn default() -> Self {
        Self {
            migration: Migration::Data,
        }
    }
}

impl FromStr for MountFlags {
    type Err = UnknownFlag;

    fn from_str(text: &str) -> Result<Self, UnknownFlag> {
        let mut flags = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            flags.migration = match word {
                "migrate=data" => Migration::Data,
                "migrate=default" => Migration::Default,
                _ => return Err(UnknownFlag(word.into())),
            };
        }
        Ok(flags)
    }
}

/// A word that no mount understands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFlag(String);

impl fmt::Display for UnknownFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not one of migrate=data, migrate=default", self.0)
    }
}

impl Error for UnknownFlag {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    #[test]
    fn the_last_word_of_a_kind_counts_and_an_unknown_one_is_named() {
        let migration = |text: &str| text.parse().map(MountFlags::migration);
        assert_eq!(migration(""), Ok(Migration::Data));
        assert_eq!(migration("migrate=default"), Ok(Migration::Default));
        assert_eq!(migration("migrate=default,,migrate=data"), Ok(Migration::Data));
        for (text, named) in [
            ("migrate=default,noatime", "noatime"),
            ("migrate=", "migrate="),
            ("migrate=whole", "migrate=whole"),
            (" migrate=data", " migrate=data"),
        ] {
            let error = migration(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{named} is not one of migrate=data, migrate=default")
            );
        }
    }
}
