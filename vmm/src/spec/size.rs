//! Sizes as people write them: `512M`, `1G`, `1.5GiB`, `4096`. Always bytes, always binary units: `K`, `M`, `G` and `T`
//! with or without `iB` or `B` mean 2^10, 2^20, 2^30 and 2^40.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// One GiB in bytes.
pub const GIB: u64 = 1 << 30;

/// The units, the largest first, with the number of bytes in each as a shift.
const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not digits with a unit.
    #[error(
        "{text:?} is not a size: write digits and one of K, M, G, T (binary units), such as 512M or 1GiB"
    )]
    Malformed {
        /// What was written.
        text: String,
    },
    /// A fraction that is not a whole number of bytes.
    #[error("{text:?} is not a whole number of bytes")]
    Fraction {
        /// What was written.
        text: String,
    },
    /// More than 2^64 - 1 bytes.
    #[error("{text:?} is more than 2^64 - 1 bytes")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// A size in bytes that is written with its unit: `512 MiB`, or in bytes when no unit fits exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}iB", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse_size(text).map(Self)
    }
}

/// Reads a size; see the module's text for what is one. Zero is a size: whether it is allowed is the caller's rule.
///
/// # Errors
/// [`SizeError`], which repeats the text.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed {
        text: text.to_owned(),
    };
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let shift = unit_shift(unit).ok_or_else(malformed)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(malformed()),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge {
        text: text.to_owned(),
    };
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(too_large)?;
    let bytes = bytes
        .checked_add(
            fraction_bytes(fraction, shift).ok_or_else(|| SizeError::Fraction {
                text: text.to_owned(),
            })?,
        )
        .ok_or_else(too_large)?;
    u64::try_from(bytes).map_err(|_| too_large())
}

/// The shift of a unit as written after the number; `None` if there is no such unit.
fn unit_shift(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(0);
    }
    UNITS
        .iter()
        .find(|(name, _)| {
            unit.strip_prefix(name)
                .is_some_and(|rest| matches!(rest, "" | "B" | "IB"))
        })
        .map(|(_, shift)| *shift)
}

/// `0.fraction` of `1 << shift`; `None` if that is not a whole number, or has more digits than any exact size needs.
fn fraction_bytes(fraction: &str, shift: u32) -> Option<u128> {
    let digits = fraction.trim_end_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    // 20 digits and a shift of at most 40 keep the product below 2^107.
    let length = u32::try_from(digits.len()).ok().filter(|length| *length <= 20)?;
    let numerator = digits.parse::<u128>().ok()? << shift;
    let denominator = 10_u128.pow(length);
    numerator
        .is_multiple_of(denominator)
        .then(|| numerator / denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_a_unit_means_the_same() {
        for text in [
            "1G",
            "1g",
            "1GB",
            "1GiB",
            "1gib",
            "1.0G",
            "1024M",
            "1048576K",
            "1073741824",
            "1073741824B",
        ] {
            assert_eq!(parse_size(text), Ok(GIB), "{text}");
        }
        assert_eq!(parse_size("1.5G"), Ok(1536 * MIB));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn what_is_not_a_size_is_refused_and_repeated() {
        for text in [
            "", "M", "1X", "1 G", "-1", "+1", "1,5G", "1.G", ".5G", "1.2.3G", "0x10", "1GiBB", "1Gi", "١G",
        ] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::Malformed { text: text.into() }),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_beyond_64_bits_are_refused() {
        for text in [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999999999999999999999999T",
        ] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::TooLarge { text: text.into() }),
                "{text}"
            );
        }
    }

    #[test]
    fn fractions_of_a_byte_are_refused() {
        for text in ["1.3K", "0.5", "0.0000000000000000000000000000001T"] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::Fraction { text: text.into() }),
                "{text}"
            );
        }
    }

    #[test]
    fn a_displayed_size_reads_back_as_itself() {
        for size in [
            1,
            512,
            1 << 10,
            3 << 20,
            1 << 30,
            5 << 40,
            (1 << 30) + 1,
            u64::MAX,
        ] {
            let text = ByteSize(size).to_string().replace(' ', "").replace("bytes", "B");
            assert_eq!(text.parse(), Ok(ByteSize(size)), "{text}");
        }
        assert_eq!(ByteSize(0).to_string(), "0 bytes");
        assert_eq!(ByteSize(1536 * MIB).to_string(), "1536 MiB");
    }
}
