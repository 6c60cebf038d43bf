//! `--on-violation POLICY`: what becomes of a guest that touches memory which is not plugged.

use super::error::SpecError;

/// What to do when the guest touches an unplugged block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnViolation {
    /// End the VM.
    Kill,
    /// Stop all its vCPUs and keep it for inspection.
    Pause,
}

/// What to do on a violation.
pub(super) fn on_violation(text: Option<&str>) -> Result<OnViolation, SpecError> {
    match text {
        None | Some("kill") => Ok(OnViolation::Kill),
        Some("pause") => Ok(OnViolation::Pause),
        Some(other) => Err(SpecError::Choice {
            option: "--on-violation",
            value: other.to_owned(),
            allowed: "kill, pause",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, with};

    #[test]
    fn unknown_policies_are_refused_with_the_known_ones() {
        let options = with(|options| options.on_violation = Some("shrug".into()));
        assert_eq!(refusal(&options), "--on-violation \"shrug\": one of kill, pause");
    }
}
