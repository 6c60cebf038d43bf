//! `--serial WHERE`: where the guest's first serial port goes.

use std::path::PathBuf;

use super::check::path;
use super::error::SpecError;

/// Where the guest's serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialMode {
    /// Standard input and output in raw mode, with the escape key.
    Terminal,
    /// Standard output; no input.
    Stdout,
    /// Appended to a file; no input.
    File(PathBuf),
    /// Nowhere.
    Discard,
}

/// Where the serial port goes, if nothing is said to `default`.
pub(super) fn serial(text: Option<&str>, default: SerialMode) -> Result<SerialMode, SpecError> {
    match text {
        None => Ok(default),
        Some("terminal") => Ok(SerialMode::Terminal),
        Some("stdout") => Ok(SerialMode::Stdout),
        Some("discard") => Ok(SerialMode::Discard),
        Some(other) => {
            let file = other.strip_prefix("file=").ok_or_else(|| SpecError::Choice {
                option: "--serial",
                value: other.to_owned(),
                allowed: "terminal, stdout, file=PATH, discard",
            })?;
            let file = PathBuf::from(file);
            path("--serial file=", &file)?;
            Ok(SerialMode::File(file))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, with};

    #[test]
    fn unknown_places_are_refused_with_the_known_ones() {
        for text in ["", "tty", "file", "Terminal"] {
            let options = with(|options| options.serial = Some(text.into()));
            let message = format!("--serial {text:?}: one of terminal, stdout, file=PATH, discard");
            assert_eq!(refusal(&options), message);
        }
        let options = with(|options| options.serial = Some("file=".into()));
        assert_eq!(refusal(&options), "--serial file= \"\": a path is not empty");
    }
}
