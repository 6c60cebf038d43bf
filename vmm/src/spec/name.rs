//! The name of a VM: it becomes a file name and part of messages, so it holds nothing that could mean more.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The longest name, in bytes.
pub const MAX_NAME_LENGTH: usize = 64;

/// The name of a VM: 1 to 64 of `A-Z a-z 0-9 _ -`, not starting with `-`. Unique among the running VMs of one
/// runtime directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

/// A text that cannot name a VM.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("name \"\": a name has at least one character")]
    Empty,
    /// More than [`MAX_NAME_LENGTH`] bytes.
    #[error("name {name:?} has {length} bytes: a name has at most {MAX_NAME_LENGTH}")]
    TooLong {
        /// The name as given.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A character outside the set.
    #[error("name {name:?} has the character {character:?}: a name is made of A-Z, a-z, 0-9, '_' and '-'")]
    OddCharacter {
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// It would read as an option.
    #[error("name {name:?} starts with '-': a name starts with a letter, a digit or '_'")]
    LeadingDash {
        /// The name as given.
        name: String,
    },
}

impl VmName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] with the rule that it breaks.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(character) = name.chars().find(|c| !allowed(*c)) {
            return Err(NameError::OddCharacter {
                name: name.to_owned(),
                character,
            });
        }
        if name.len() > MAX_NAME_LENGTH {
            return Err(NameError::TooLong {
                name: name.to_owned(),
                length: name.len(),
            });
        }
        if name.starts_with('-') {
            return Err(NameError::LeadingDash {
                name: name.to_owned(),
            });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VmName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_names() {
        for name in ["a", "web-1", "_x", "0", "A_b-C", &"n".repeat(MAX_NAME_LENGTH)] {
            assert_eq!(VmName::new(name).expect(name).as_str(), name);
        }
    }

    #[test]
    fn a_character_with_a_meaning_elsewhere_is_refused_and_named() {
        for c in [
            '/', '.', ' ', '\n', '\0', '\'', '"', '*', '~', '$', ':', 'é', '\u{202e}',
        ] {
            let name = format!("a{c}b");
            assert_eq!(
                VmName::new(&name),
                Err(NameError::OddCharacter {
                    name: name.clone(),
                    character: c
                })
            );
        }
    }

    #[test]
    fn length_and_first_character_are_checked() {
        assert_eq!(VmName::new(""), Err(NameError::Empty));
        assert_eq!(
            VmName::new("-rf"),
            Err(NameError::LeadingDash { name: "-rf".into() })
        );
        let long = "n".repeat(MAX_NAME_LENGTH + 1);
        assert_eq!(
            VmName::new(&long),
            Err(NameError::TooLong {
                length: long.len(),
                name: long
            })
        );
    }
}
