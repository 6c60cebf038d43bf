//! `--balloon [SIZE][,floor=SIZE][,stats=SECONDS][,deflate-on-oom][,reporting][,hinting]`: memory taken page by page.

use super::check::{check, size};
use super::error::SizeRule::{AtLeast, MultipleOf};
use super::error::SpecError;
use super::memory::MIN_MEMORY;
use super::size::ByteSize;

/// The unit of the balloon: a page of 4096 bytes (virtio 1.3, section 5.5.6).
pub const BALLOON_UNIT: u64 = 4096;
/// The longest interval between two questions for statistics, in seconds: a day.
pub const MAX_STATS_SECONDS: u32 = 86_400;
/// Without a floor the guest keeps one part in so many of its boot memory, and [`MIN_MEMORY`] at least.
const FLOOR_SHARE: u64 = 4;

const OPTION: &str = "--balloon";
const FORM: &str = "[SIZE][,floor=SIZE][,stats=SECONDS][,deflate-on-oom][,reporting][,hinting]";

/// The balloon. Sizes are bytes and multiples of [`BALLOON_UNIT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonSpec {
    /// What the guest is asked to put into it at boot.
    pub size: u64,
    /// What the guest keeps in any case: no resize goes below it.
    pub floor: u64,
    /// Seconds from one question for statistics to the next; 0: only when somebody asks.
    pub stats_seconds: u32,
    /// The guest may deflate by itself rather than run out of memory.
    pub deflate_on_oom: bool,
    /// The guest reports free pages by itself.
    pub reporting: bool,
    /// The guest can be asked for its free pages.
    pub hinting: bool,
}

/// What the text says, in its parts.
#[derive(Default)]
struct Parts<'a> {
    size: Option<&'a str>,
    floor: Option<&'a str>,
    stats: Option<&'a str>,
    deflate_on_oom: Option<()>,
    reporting: Option<()>,
    hinting: Option<()>,
}

impl<'a> Parts<'a> {
    fn parse(text: &'a str) -> Result<Self, SpecError> {
        let mut parts = Self::default();
        for (at, part) in text.split(',').enumerate() {
            let is_new = match (part.split_once('='), part) {
                // `--balloon` alone, and `--balloon ,reporting`.
                (None, "") if at == 0 => true,
                (Some(("floor", size)), _) => parts.floor.replace(size).is_none(),
                (Some(("stats", seconds)), _) => parts.stats.replace(seconds).is_none(),
                (None, "deflate-on-oom") => parts.deflate_on_oom.replace(()).is_none(),
                (None, "reporting") => parts.reporting.replace(()).is_none(),
                (None, "hinting") => parts.hinting.replace(()).is_none(),
                (None, size) if at == 0 => parts.size.replace(size).is_none(),
                _ => false,
            };
            if !is_new {
                return Err(SpecError::Choice {
                    option: OPTION,
                    value: text.to_owned(),
                    allowed: FORM,
                });
            }
        }
        Ok(parts)
    }
}

/// The balloon of a guest that boots with `memory` bytes and is asked to take `requested` bytes more.
pub(super) fn balloon(
    text: Option<&str>,
    memory: u64,
    requested: u64,
) -> Result<Option<BalloonSpec>, SpecError> {
    let Some(text) = text else { return Ok(None) };
    let parts = Parts::parse(text)?;
    let bytes = parts.size.map_or(Ok(0), |text| size(OPTION, text))?;
    check(OPTION, bytes, &[MultipleOf(BALLOON_UNIT)])?;
    let floor = match parts.floor {
        Some(text) => size("--balloon floor", text)?,
        None => (memory / FLOOR_SHARE).max(MIN_MEMORY.min(memory)),
    };
    let rules = [AtLeast(BALLOON_UNIT), MultipleOf(BALLOON_UNIT)];
    check("--balloon floor", floor, &rules)?;
    if floor > memory {
        return Err(SpecError::Above {
            option: "--balloon floor",
            bytes: ByteSize(floor),
            limit: ByteSize(memory),
            of: "the boot memory",
        });
    }
    let most = memory.saturating_add(requested) - floor;
    if bytes > most {
        return Err(SpecError::Above {
            option: OPTION,
            bytes: ByteSize(bytes),
            limit: ByteSize(most),
            of: "the guest's memory above the balloon's floor",
        });
    }
    Ok(Some(BalloonSpec {
        size: bytes,
        floor,
        stats_seconds: parts.stats.map_or(Ok(0), stats_seconds)?,
        deflate_on_oom: parts.deflate_on_oom.is_some(),
        reporting: parts.reporting.is_some(),
        hinting: parts.hinting.is_some(),
    }))
}

fn stats_seconds(text: &str) -> Result<u32, SpecError> {
    // `from_str` of a number also takes a leading plus sign, which nobody means.
    let number = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    number
        .and_then(|text| text.parse().ok())
        .filter(|seconds| *seconds <= MAX_STATS_SECONDS)
        .ok_or_else(|| SpecError::Choice {
            option: "--balloon stats",
            value: text.to_owned(),
            allowed: "0 to 86400 seconds",
        })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::super::{MIB, VmOptions};
    use super::*;

    const _: () = assert!(MAX_STATS_SECONDS == 86_400, "the message says so");

    fn options(balloon: &str) -> VmOptions {
        with(|options| {
            options.memory = Some("256M".into());
            options.balloon = Some(balloon.into());
        })
    }

    fn spec(balloon: &str) -> BalloonSpec {
        let spec = validate(&options(balloon)).unwrap_or_else(|error| panic!("{balloon}: {error}"));
        spec.balloon.expect("a balloon was asked for")
    }

    #[test]
    fn nothing_said_is_an_empty_balloon_that_leaves_a_quarter() {
        assert_eq!(validate(&VmOptions::default()).unwrap().balloon, None);
        let plain = BalloonSpec {
            size: 0,
            floor: 64 * MIB,
            stats_seconds: 0,
            deflate_on_oom: false,
            reporting: false,
            hinting: false,
        };
        assert_eq!(spec(""), plain);
        assert_eq!(spec("0"), plain);
    }

    #[test]
    fn everything_said_arrives() {
        let all = BalloonSpec {
            size: 64 * MIB,
            floor: 96 * MIB,
            stats_seconds: 5,
            deflate_on_oom: true,
            reporting: true,
            hinting: true,
        };
        assert_eq!(
            spec("64M,floor=96M,stats=5,deflate-on-oom,reporting,hinting"),
            all
        );
        let empty = BalloonSpec { size: 0, ..all };
        assert_eq!(spec("hinting,reporting,deflate-on-oom,stats=5,floor=96M"), empty);
        assert_eq!(spec(",hinting,reporting,deflate-on-oom,stats=5,floor=96M"), empty);
    }

    #[test]
    fn the_balloon_follows_its_rules() {
        for (text, message) in [
            ("1K", "--balloon 1 KiB: not a multiple of 4 KiB"),
            ("x", "--balloon: \"x\""),
            ("64M,64M", "--balloon \"64M,64M\": one of [SIZE]"),
            ("hinting,hinting", "--balloon \"hinting,hinting\": one of [SIZE]"),
            ("64M,", "--balloon \"64M,\": one of [SIZE]"),
            ("floor=0", "--balloon floor 0 bytes: the smallest is 4 KiB"),
            (
                "floor=5000",
                "--balloon floor 5000 bytes: not a multiple of 4 KiB",
            ),
            (
                "floor=1G",
                "--balloon floor 1 GiB: more than the boot memory, 256 MiB",
            ),
            (
                "200M",
                "--balloon 200 MiB: more than the guest's memory above the balloon's floor, 192 MiB",
            ),
            ("stats=-1", "--balloon stats \"-1\": one of 0 to 86400 seconds"),
            ("stats=86401", "--balloon stats \"86401\": one of"),
            ("stats", "--balloon: \"stats\""),
        ] {
            let refusal = refusal(&options(text));
            assert!(refusal.contains(message), "{text}: {refusal}");
        }
    }
}
