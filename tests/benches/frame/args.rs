//! The command line.

use std::fmt;

use crate::figure::Effort;

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
pub(crate) struct UnknownArgument {
    bench: &'static str,
    argument: String,
}

impl fmt::Display for UnknownArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown argument {}; usage: cargo bench --bench {} -- [FILTER] [--quick]",
            self.argument, self.bench
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
        bench: &'static str,
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
                _ => return Err(UnknownArgument { bench, argument }),
            }
        }
        Ok(args)
    }
}
