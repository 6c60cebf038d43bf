//! The command line.

use std::fmt;

use crate::measure::Effort;

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Args {
    /// Text that a row's name must contain.
    pub(crate) filter: String,
    /// How long to measure.
    pub(crate) effort: Effort,
}

/// An argument that there is not.
#[derive(Debug)]
pub(crate) struct UnknownArgument(String);

impl fmt::Display for UnknownArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown argument {}; usage: cargo bench --bench phys -- [FILTER] [--quick]",
            self.0
        )
    }
}

impl std::error::Error for UnknownArgument {}

impl Args {
    /// From the arguments after the program's name. Cargo adds `--bench` of its own.
    ///
    /// # Errors
    /// On an option there is not, or a second filter.
    pub(crate) fn from_command_line(
        arguments: impl Iterator<Item = String>,
    ) -> Result<Self, UnknownArgument> {
        let mut args = Self {
            filter: String::new(),
            effort: Effort::FULL,
        };
        for argument in arguments {
            match argument.as_str() {
                "--bench" => {}
                "--quick" => args.effort = Effort::QUICK,
                text if !text.starts_with('-') && args.filter.is_empty() => args.filter = argument,
                _ => return Err(UnknownArgument(argument)),
            }
        }
        Ok(args)
    }
}
