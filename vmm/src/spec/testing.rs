//! Options for the tests of the rules.

use super::{SpecError, VmName, VmOptions, VmSpec};

/// Options with one field set, the rest left out.
pub(super) fn with(set: impl FnOnce(&mut VmOptions)) -> VmOptions {
    let mut options = VmOptions::default();
    set(&mut options);
    options
}

pub(super) fn validate(options: &VmOptions) -> Result<VmSpec, SpecError> {
    options.validate(&VmName::new("default").expect("a name"))
}

/// The whole chain of what is wrong, as the command line prints it.
pub(super) fn refusal(options: &VmOptions) -> String {
    let error = validate(options).expect_err("these options break a rule");
    crate::cli::chain(&error)
}
