//! `--cpus NUMBER`: how many virtual CPUs there are.

use std::num::NonZeroU8;

use super::error::SpecError;

/// The most virtual CPUs.
pub const MAX_CPUS: u8 = 16;

/// The number of CPUs.
pub(super) fn cpus(text: Option<&str>) -> Result<NonZeroU8, SpecError> {
    let Some(text) = text else {
        return Ok(NonZeroU8::MIN);
    };
    // `from_str` of a number also takes a leading plus sign, which nobody means.
    let number = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    number
        .and_then(|text| text.parse::<NonZeroU8>().ok())
        .filter(|cpus| cpus.get() <= MAX_CPUS)
        .ok_or_else(|| SpecError::Cpus {
            value: text.to_owned(),
            limit: MAX_CPUS,
        })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, with};

    #[test]
    fn cpus_are_1_to_16() {
        for text in [
            "0",
            "17",
            "256",
            "-1",
            "+1",
            "1.0",
            "",
            "two",
            "99999999999999999999",
        ] {
            let options = with(|options| options.cpus = Some(text.into()));
            assert_eq!(
                refusal(&options),
                format!("--cpus {text:?}: a VM has 1 to 16 CPUs")
            );
        }
    }
}
