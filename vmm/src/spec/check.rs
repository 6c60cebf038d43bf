//! Checks that several options share; each names the option in front of what is wrong with its value.

use std::path::Path;

use super::error::{SizeRule, SpecError};
use super::size::{ByteSize, parse_size};

/// A size, with the option in front of what is wrong with it.
pub(super) fn size(option: &'static str, text: &str) -> Result<u64, SpecError> {
    parse_size(text).map_err(|source| SpecError::Size { option, source })
}

/// Refuses a size that breaks one of the rules.
pub(super) fn check(option: &'static str, bytes: u64, rules: &[SizeRule]) -> Result<(), SpecError> {
    let broken = rules.iter().find(|rule| !rule.allows(bytes));
    broken.map_or(Ok(()), |&rule| {
        let bytes = ByteSize(bytes);
        Err(SpecError::Amount { option, bytes, rule })
    })
}

/// Refuses a path that no file can have.
pub(super) fn path(option: &'static str, path: &Path) -> Result<(), SpecError> {
    let rule = match path.as_os_str().as_encoded_bytes() {
        [] => "a path is not empty",
        bytes if bytes.contains(&0) => "a path has no zero byte",
        _ => return Ok(()),
    };
    Err(SpecError::Text {
        option,
        value: path.display().to_string(),
        rule,
    })
}

/// The values of a list such as `tap=tap0,mac=..`, in the order of `names`; each at most once, in any order. `allowed` is
/// how the whole may look, for the message.
pub(super) fn parts<'a, const N: usize>(
    option: &'static str,
    text: &'a str,
    names: [&str; N],
    allowed: &'static str,
) -> Result<[Option<&'a str>; N], SpecError> {
    let mut values = [None; N];
    for part in text.split(',') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let place = names
            .iter()
            .position(|known| *known == name && part.contains('='));
        let is_new = place.is_some_and(|place| values[place].replace(value).is_none());
        if !is_new {
            return Err(SpecError::Choice {
                option,
                value: text.to_owned(),
                allowed,
            });
        }
    }
    Ok(values)
}
