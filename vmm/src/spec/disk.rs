//! Disks: `--disk PATH`, and behind it what [`FORM`] lists, once for each disk, in the guest's order.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use devices::block::{DiskAccess, DiskId};
use devices::rate::{BucketSpec, RateSpec};

use super::check;
use super::error::SpecError;

/// One of its parts, for messages about its size.
const BANDWIDTH: &str = "--disk bandwidth";
/// The option.
const OPTION: &str = "--disk";
/// How it may look.
const FORM: &str = "a path, then readonly, direct, engine=NAME, id=TEXT, iops=N, iops-burst=N, bandwidth=SIZE and \
                    bandwidth-burst=SIZE, each at most once";

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// A file or a block device.
    pub path: PathBuf,
    /// Whether the guest can write it.
    pub access: DiskAccess,
    /// Whether the host caches it.
    pub cache: DiskCache,
    /// How its I/O is done.
    pub engine: EngineChoice,
    /// What it tells the guest it is: up to 20 characters. By default the end of the path.
    pub id: DiskId,
    /// How much it may do in a second.
    pub rate: RateSpec,
}

/// Whether the host's page cache is in between. Either way a guest's flush reaches the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCache {
    /// It is.
    Host,
    /// It is not (O_DIRECT).
    None,
}

/// How the I/O of a disk is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring, or a thread where the kernel refuses that.
    Auto,
    /// io_uring, or not at all.
    IoUring,
    /// A thread with plain system calls.
    Thread,
}

/// The disks from their texts.
pub(super) fn disks(texts: &[String]) -> Result<Vec<DiskSpec>, SpecError> {
    texts.iter().map(|text| disk(text)).collect()
}

fn disk(text: &str) -> Result<DiskSpec, SpecError> {
    let wrong = |rule| SpecError::Text {
        option: OPTION,
        value: text.to_owned(),
        rule,
    };
    let mut parts = text.split(',');
    let path = parts.next().unwrap_or_default();
    check::path(OPTION, Path::new(path))?;
    let (mut readonly, mut direct, mut engine, mut id) = (None, None, None, None);
    let (mut ops, mut bandwidth) = (BucketText::default(), BucketText::default());
    for part in parts {
        let is_new = match part.split_once('=').unwrap_or((part, "")) {
            ("readonly", "") => readonly.replace(DiskAccess::ReadOnly).is_none(),
            ("direct", "") => direct.replace(DiskCache::None).is_none(),
            ("engine", name) => engine.replace(engine_of(name)?).is_none(),
            ("id", text) => {
                let rule = "an id is 1 to 20 printable ASCII characters";
                let parsed = DiskId::new(text).filter(|_| !text.is_empty());
                id.replace(parsed.ok_or_else(|| wrong(rule))?).is_none()
            }
            ("iops", number) => ops.rate.replace(count(number)?).is_none(),
            ("iops-burst", number) => ops.burst.replace(count(number)?).is_none(),
            ("bandwidth", size) => bandwidth.rate.replace(check::size(BANDWIDTH, size)?).is_none(),
            ("bandwidth-burst", size) => bandwidth.burst.replace(check::size(BANDWIDTH, size)?).is_none(),
            _ => false,
        };
        if !is_new {
            return Err(wrong(FORM));
        }
    }
    let rule = "a rate is at least 1 a second, and a burst goes with its rate";
    let bucket = |text: BucketText| text.spec().ok_or_else(|| wrong(rule));
    let rate = RateSpec {
        bandwidth: bucket(bandwidth)?,
        ops: bucket(ops)?,
    };
    Ok(DiskSpec {
        path: path.into(),
        access: readonly.unwrap_or(DiskAccess::ReadWrite),
        cache: direct.unwrap_or(DiskCache::Host),
        engine: engine.unwrap_or(EngineChoice::Auto),
        id: id.unwrap_or_else(|| id_of(path)),
        rate,
    })
}

/// What was said of one of the limits.
#[derive(Default)]
struct BucketText {
    rate: Option<u64>,
    burst: Option<u64>,
}

impl BucketText {
    /// The bucket, if there is to be one; `None` if it cannot be like that.
    fn spec(self) -> Option<Option<BucketSpec>> {
        match (self.rate, self.burst) {
            (None, None) => Some(None),
            (None, Some(_)) => None,
            (Some(rate), burst) => Some(Some(BucketSpec {
                one_time_burst: burst.unwrap_or(0),
                ..BucketSpec::per_second(NonZeroU64::new(rate)?)
            })),
        }
    }
}

fn count(text: &str) -> Result<u64, SpecError> {
    text.parse().map_err(|_| SpecError::Text {
        option: "--disk iops",
        value: text.to_owned(),
        rule: "a number of requests in digits",
    })
}

/// The last 20 characters of a path, with a sign that can be printed for each that cannot.
fn id_of(path: &str) -> DiskId {
    let printable = |byte: u8| {
        if byte.is_ascii_graphic() {
            char::from(byte)
        } else {
            '_'
        }
    };
    let start = path.len().saturating_sub(20);
    let end: String = path.bytes().skip(start).map(printable).collect();
    DiskId::new(&end).unwrap_or_default()
}

fn engine_of(name: &str) -> Result<EngineChoice, SpecError> {
    match name {
        "auto" => Ok(EngineChoice::Auto),
        "io-uring" => Ok(EngineChoice::IoUring),
        "thread" => Ok(EngineChoice::Thread),
        other => Err(SpecError::Choice {
            option: "--disk engine",
            value: other.to_owned(),
            allowed: "auto, io-uring, thread",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, with};
    use super::*;

    fn one(text: &str) -> DiskSpec {
        disk(text).expect("valid")
    }

    #[test]
    fn a_path_alone_is_a_disk_that_is_written_and_cached() {
        let expected = DiskSpec {
            path: "/var/lib/root.img".into(),
            access: DiskAccess::ReadWrite,
            cache: DiskCache::Host,
            engine: EngineChoice::Auto,
            id: DiskId::new("/var/lib/root.img").expect("17 characters"),
            rate: RateSpec::default(),
        };
        assert_eq!(one("/var/lib/root.img"), expected);
    }

    #[test]
    fn every_part_is_heard_in_any_order() {
        let disk = one("d,id=root disk,engine=thread,direct,readonly");
        assert_eq!(disk.path, PathBuf::from("d"));
        assert_eq!((disk.access, disk.cache), (DiskAccess::ReadOnly, DiskCache::None));
        assert_eq!(disk.engine, EngineChoice::Thread);
        assert_eq!(Some(disk.id), DiskId::new("root disk"));
        assert_eq!(one("d,engine=io-uring").engine, EngineChoice::IoUring);
    }

    #[test]
    fn a_long_or_unprintable_path_gives_the_id_of_its_end() {
        let id = one("/srv/images/a-very-long-name-of-a-disk.img").id;
        assert_eq!(Some(id), DiskId::new("g-name-of-a-disk.img"));
        assert_eq!(Some(one("d\u{fc}").id), DiskId::new("d__"));
    }

    #[test]
    fn parts_that_mean_nothing_are_refused_with_the_rule() {
        for text in [
            "d,",
            "d,readonly,readonly",
            "d,readonly=1",
            "d,size=1G",
            "d,iops=1,iops=1",
        ] {
            let message = refusal(&with(|options| options.disk = vec![text.into()]));
            assert_eq!(message, format!("--disk {text:?}: {FORM}"));
        }
        let message = |text: &str| refusal(&with(|options| options.disk = vec![text.into()]));
        assert_eq!(message(",readonly"), "--disk \"\": a path is not empty");
        assert_eq!(
            message("d,engine=aio"),
            "--disk engine \"aio\": one of auto, io-uring, thread"
        );
        assert_eq!(
            message("d,id=twenty-one-characters"),
            "--disk \"d,id=twenty-one-characters\": an id is 1 to 20 printable ASCII characters"
        );
    }

    #[test]
    fn rates_are_a_second_s_tokens_and_their_bursts_come_on_top() {
        let bucket = |size, one_time_burst| {
            let size = NonZeroU64::new(size).expect("not 0");
            Some(BucketSpec {
                one_time_burst,
                ..BucketSpec::per_second(size)
            })
        };
        let rate = |text: &str| one(text).rate;
        let expected = RateSpec {
            bandwidth: bucket(10 << 20, 0),
            ops: bucket(100, 7),
        };
        assert_eq!(rate("d,iops=100,bandwidth=10M,iops-burst=7"), expected);
        let bandwidth = bucket(512, 1 << 30);
        assert_eq!(
            rate("d,bandwidth-burst=1G,bandwidth=512"),
            RateSpec {
                bandwidth,
                ..RateSpec::default()
            }
        );
    }

    #[test]
    fn rates_that_let_nothing_through_and_bursts_of_none_are_refused() {
        let message = |text: &str| refusal(&with(|options| options.disk = vec![text.into()]));
        for text in [
            "d,iops=0",
            "d,bandwidth=0",
            "d,iops-burst=1",
            "d,bandwidth-burst=1,iops=1",
        ] {
            assert_eq!(
                message(text),
                format!("--disk {text:?}: a rate is at least 1 a second, and a burst goes with its rate")
            );
        }
        for text in ["", "-1", "1.5", "many"] {
            assert_eq!(
                message(&format!("d,iops={text}")),
                format!("--disk iops {text:?}: a number of requests in digits")
            );
        }
        assert!(message("d,bandwidth=fast").starts_with("--disk bandwidth: \"fast\" is not a size"));
    }
}
