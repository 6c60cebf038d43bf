//! Disks: `--disk PATH[,readonly][,direct][,engine=NAME][,id=TEXT]`, once for each disk, in the guest's order.

use std::path::{Path, PathBuf};

use devices::block::{DiskAccess, DiskId};

use super::check;
use super::error::SpecError;

/// The option.
const OPTION: &str = "--disk";

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
            _ => false,
        };
        if !is_new {
            return Err(wrong(
                "a path, then readonly, direct, engine=NAME and id=TEXT, each at most once",
            ));
        }
    }
    Ok(DiskSpec {
        path: path.into(),
        access: readonly.unwrap_or(DiskAccess::ReadWrite),
        cache: direct.unwrap_or(DiskCache::Host),
        engine: engine.unwrap_or(EngineChoice::Auto),
        id: id.unwrap_or_else(|| id_of(path)),
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
        for text in ["d,", "d,readonly,readonly", "d,readonly=1", "d,size=1G"] {
            let message = refusal(&with(|options| options.disk = vec![text.into()]));
            assert_eq!(
                message,
                format!(
                    "--disk {text:?}: a path, then readonly, direct, engine=NAME and id=TEXT, each at most once"
                )
            );
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
}
