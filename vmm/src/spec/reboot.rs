//! `--on-reboot POLICY` and `--reboot-limit NUMBER`: what becomes of a guest that resets its machine.

use std::num::NonZeroU32;

use super::error::SpecError;

/// What to do when the guest resets its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// Boot it again, in the same process and with what is requested of its memory.
    Reboot,
    /// End the VM.
    Exit,
}

/// Resets in a row that are a loop where nothing else is said.
pub const DEFAULT_REBOOT_LIMIT: NonZeroU32 = NonZeroU32::new(16).unwrap();

/// How many quick resets in a row are a loop, if any number is; 0 means none.
pub(super) fn reboot_limit(text: Option<&str>) -> Result<Option<NonZeroU32>, SpecError> {
    let Some(text) = text else {
        return Ok(Some(DEFAULT_REBOOT_LIMIT));
    };
    text.parse().map(NonZeroU32::new).map_err(|_| SpecError::Text {
        option: "--reboot-limit",
        value: text.to_owned(),
        rule: "a number of resets in a row, or 0 for no limit",
    })
}

/// What to do on a reset.
pub(super) fn on_reboot(text: Option<&str>) -> Result<OnReboot, SpecError> {
    match text {
        None | Some("reboot") => Ok(OnReboot::Reboot),
        Some("exit") => Ok(OnReboot::Exit),
        Some(other) => Err(SpecError::Choice {
            option: "--on-reboot",
            value: other.to_owned(),
            allowed: "reboot, exit",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::*;

    #[test]
    fn unknown_policies_are_refused_with_the_known_ones() {
        let options = with(|options| options.on_reboot = Some("again".into()));
        assert_eq!(refusal(&options), "--on-reboot \"again\": one of reboot, exit");
    }

    #[test]
    fn a_limit_is_a_number_and_0_is_none() {
        let options = |text: Option<&str>| with(|options| options.reboot_limit = text.map(Into::into));
        let limit = |text| {
            validate(&options(text))
                .unwrap()
                .reboot_limit
                .map(NonZeroU32::get)
        };
        assert_eq!(limit(None), Some(16));
        assert_eq!((limit(Some("3")), limit(Some("0"))), (Some(3), None));
        for text in ["", "-1", "many", "4294967296"] {
            let message = format!("--reboot-limit {text:?}: a number of resets in a row, or 0 for no limit");
            assert_eq!(refusal(&options(Some(text))), message);
        }
    }
}
