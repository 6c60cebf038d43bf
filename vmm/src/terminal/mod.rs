//! The user's terminal while a guest has it: raw mode, given back on every way out; the escape key; output that
//! never lets a guest and a slow reader stop the VMM; and the signals that ask the VMM to end.

mod escape;
mod output;
mod raw_mode;
mod signals;

pub use escape::{ESCAPE_HELP, EscapeFilter, Typed};
pub use output::{Output, OutputWriter, Sink};
pub use raw_mode::RawMode;
pub use signals::EndSignals;
