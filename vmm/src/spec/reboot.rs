//! `--on-reboot POLICY`: what becomes of a guest that resets its machine.

use super::error::SpecError;

/// What to do when the guest resets its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// Boot it again, in the same process and with what is requested of its memory.
    Reboot,
    /// End the VM.
    Exit,
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
    use super::super::testing::{refusal, with};

    #[test]
    fn unknown_policies_are_refused_with_the_known_ones() {
        let options = with(|options| options.on_reboot = Some("again".into()));
        assert_eq!(refusal(&options), "--on-reboot \"again\": one of reboot, exit");
    }
}
