//! What boots: `--kernel`, `--initrd`, `--cmdline`, and `--program` for the built-in guest.

use std::path::PathBuf;

use super::check::path;
use super::error::SpecError;
use super::options::VmOptions;
use crate::machine::layout::CMDLINE_MAX;

/// The longest command line, in bytes, without the zero that ends it in memory.
pub const MAX_CMDLINE_LENGTH: usize = CMDLINE_MAX - 1;

// Messages name it.
const _: () = assert!(MAX_CMDLINE_LENGTH == 2047);

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The guest embedded in the binary.
    BuiltIn {
        /// Extra command line.
        cmdline: String,
        /// Programs to run, each a line such as `hog fill=70%`.
        programs: Vec<String>,
    },
    /// A PVH ELF image or a bzImage.
    Kernel {
        /// The kernel file.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
}

impl VmOptions {
    /// What boots, from `kernel`, `initrd`, `cmdline` and `program`.
    pub(super) fn payload(&self) -> Result<Payload, SpecError> {
        let cmdline = self.cmdline.clone().unwrap_or_default();
        command_line(&cmdline)?;
        let Some(kernel) = self.kernel.clone() else {
            if self.initrd.is_some() {
                let rule = "the built-in guest has no initial RAM disk";
                return Err(SpecError::Missing {
                    option: "--initrd",
                    missing: "--kernel",
                    rule,
                });
            }
            self.program
                .iter()
                .try_for_each(|program| check_program(program))?;
            return Ok(Payload::BuiltIn {
                cmdline,
                programs: self.program.clone(),
            });
        };
        if !self.program.is_empty() {
            let rule = "programs belong to the built-in guest";
            return Err(SpecError::Conflict {
                option: "--program",
                other: "--kernel",
                rule,
            });
        }
        path("--kernel", &kernel)?;
        self.initrd
            .as_ref()
            .map_or(Ok(()), |initrd| path("--initrd", initrd))?;
        Ok(Payload::Kernel {
            kernel,
            initrd: self.initrd.clone(),
            cmdline,
        })
    }
}

/// Refuses a kernel command line that the guest could not read as one.
fn command_line(text: &str) -> Result<(), SpecError> {
    let rule = if text.chars().any(char::is_control) {
        "a command line is one line without control characters"
    } else if text.len() > MAX_CMDLINE_LENGTH {
        "a command line has at most 2047 bytes"
    } else {
        return Ok(());
    };
    Err(SpecError::Text {
        option: "--cmdline",
        value: text.to_owned(),
        rule,
    })
}

/// Refuses a program line that could not be put between quotes on the guest's command line (Linux has no escapes there).
fn check_program(text: &str) -> Result<(), SpecError> {
    let rule = if text.trim().is_empty() {
        "a program has a name"
    } else if text.contains('"') {
        "a program line is quoted for the guest and has no quote of its own"
    } else if !text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        "a program line is printable ASCII"
    } else if text.len() > MAX_CMDLINE_LENGTH {
        "a program line has at most 2047 bytes"
    } else {
        return Ok(());
    };
    Err(SpecError::Text {
        option: "--program",
        value: text.to_owned(),
        rule,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, with};
    use super::*;

    #[test]
    fn texts_that_the_guest_could_not_read_back_are_refused() {
        for (program, message) in [
            ("", "a program has a name"),
            ("  ", "a program has a name"),
            ("hog \"x\"", "no quote of its own"),
            ("hog\nspin", "printable ASCII"),
            ("høg", "printable ASCII"),
            (
                &"h".repeat(MAX_CMDLINE_LENGTH + 1),
                &format!("at most {MAX_CMDLINE_LENGTH} bytes"),
            ),
        ] {
            let options = with(|options| options.program = vec!["ok".into(), program.into()]);
            assert!(refusal(&options).contains(message), "{}", refusal(&options));
        }
        for (cmdline, message) in [
            ("a\nb", "one line"),
            ("a\0b", "one line"),
            (
                &"c".repeat(MAX_CMDLINE_LENGTH + 1),
                &format!("at most {MAX_CMDLINE_LENGTH} bytes"),
            ),
        ] {
            let options = with(|options| options.cmdline = Some(cmdline.into()));
            assert!(refusal(&options).contains(message), "{}", refusal(&options));
        }
    }

    #[test]
    fn a_kernel_has_a_path() {
        let options = with(|options| options.kernel = Some("".into()));
        assert_eq!(refusal(&options), "--kernel \"\": a path is not empty");
    }
}
