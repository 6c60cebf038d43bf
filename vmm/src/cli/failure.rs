//! How a command ends, and how it says that it failed.

use std::error::Error;
use std::process::ExitCode;

use crate::control::client::ClientError;
use crate::control::registry::RegistryError;

/// The exit statuses of `ballast`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All is well.
    Done = 0,
    /// A fault at run time.
    RunTime = 1,
    /// The command line or a VM file breaks a rule.
    Usage = 2,
    /// The guest panicked.
    GuestPanic = 3,
    /// The guest touched unplugged memory and was killed.
    Violation = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    status: Status,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// The command line or the VM file breaks a rule; nothing was started.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            status: Status::Usage,
            error: error.into(),
        }
    }

    /// Something went wrong at run time.
    pub fn run_time(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            status: Status::RunTime,
            error: error.into(),
        }
    }

    /// Prints the failure with all its causes, in one line, and answers the exit status.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        eprintln!("ballast: {}", chain(&*self.error));
        self.status.into()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::run_time(error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::run_time(error)
    }
}

/// An error and all its causes in one line, outermost first. A cause that the text before it ends with already is not
/// said again: many libraries put their cause into their own text.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes
        .map(|cause| one_line(&cause.to_string()))
        .fold(String::new(), |said, cause| match said.as_str() {
            "" => cause,
            said if said.ends_with(&cause) => said.to_owned(),
            said => format!("{said}: {cause}"),
        })
}

/// The text without line breaks and other control characters: messages also carry what a guest or a file said.
pub(super) fn one_line(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn a_chain_names_every_cause_in_one_line() {
        let inner = Layer {
            text: "the\ncause\x1b[31m\n",
            source: None,
        };
        let outer = Layer {
            text: "what failed",
            source: Some(Box::new(inner)),
        };
        assert_eq!(chain(&outer), "what failed: the cause [31m");
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let inner = Layer {
            text: "no such file",
            source: None,
        };
        let outer = Layer {
            text: "/boot/k: no such file",
            source: Some(Box::new(inner)),
        };
        assert_eq!(chain(&outer), "/boot/k: no such file");
    }
}
