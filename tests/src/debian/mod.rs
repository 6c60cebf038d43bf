//! What the tests take from Debian: the kernels that run in the host box and as stock guests, and busybox.
//!
//! Packages are downloaded and unpacked below the target directory, never installed. Tests run as processes side by
//! side, so a file lock lets the first one fetch something while the others wait; what exists is complete, because it
//! is renamed into place.

mod kernel;
mod root_disk;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use kernel::{KernelPackage, Release};
pub use root_disk::{root_disk, root_image};

use crate::ballast::{finish, profile_dir};

/// Path of the statically linked busybox.
///
/// # Panics
/// When the Debian package is missing.
pub fn busybox() -> PathBuf {
    require("/bin/busybox", "busybox-static")
}

/// Answers `path`, which a Debian package called `package` brings.
///
/// # Panics
/// When it is not there.
pub fn require(path: &str, package: &str) -> PathBuf {
    let path = PathBuf::from(path);
    assert!(
        path.is_file(),
        "{} is missing: install the Debian package {package}, or run tests/run",
        path.display()
    );
    path
}

/// Whether this process runs as the superuser, and so needs no `sudo`.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The file or folder called `name` in the folder shared by all tests, made by `make` when it is not there yet: `make`
/// gets a folder of its own to work in, and answers where in it the finished thing is.
///
/// # Panics
/// When it cannot be made or kept.
pub(crate) fn shared(name: &str, make: impl FnOnce(&Path) -> PathBuf) -> PathBuf {
    shared_while(name, |_| true, make)
}

/// As [`shared`], and made anew when it is there but not `valid` any more.
///
/// # Panics
/// As [`shared`].
pub(crate) fn shared_while(
    name: &str,
    valid: impl FnOnce(&Path) -> bool,
    make: impl FnOnce(&Path) -> PathBuf,
) -> PathBuf {
    let target = profile_dir()
        .parent()
        .expect("a profile's folder has a parent")
        .join("host-box");
    fs::create_dir_all(&target).unwrap_or_else(|error| panic!("cannot make {}: {error}", target.display()));
    let lock = File::create(target.join(format!("{name}.lock")))
        .unwrap_or_else(|error| panic!("no lock file: {error}"));
    lock.lock().unwrap_or_else(|error| panic!("cannot lock: {error}"));
    let kept = target.join(name);
    if !(kept.exists() && valid(&kept)) {
        let staging =
            tempfile::tempdir_in(&target).unwrap_or_else(|error| panic!("no staging folder: {error}"));
        let made = make(staging.path());
        if kept.exists() {
            // It goes with the staging folder.
            let stale = staging.path().join("stale");
            fs::rename(&kept, &stale)
                .unwrap_or_else(|error| panic!("cannot move {}: {error}", kept.display()));
        }
        fs::rename(&made, &kept).unwrap_or_else(|error| panic!("cannot keep {}: {error}", kept.display()));
    }
    kept
}

/// `apt-get update`, as the superuser.
fn update_package_lists() -> crate::ballast::Outcome {
    let mut update = as_root("apt-get");
    finish(update.args(["update", "--quiet"]))
}

/// A command that runs `program` as the superuser.
pub(crate) fn as_root(program: &str) -> std::process::Command {
    if is_root() {
        return std::process::Command::new(program);
    }
    let mut command = std::process::Command::new("sudo");
    command.arg(program);
    command
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            find(&path, wanted)
        } else {
            wanted(&entry.file_name().to_string_lossy()).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_made_once_and_anew_when_it_is_not_valid_any_more() {
        let name = format!("test-{}", std::process::id());
        let make = |text: &'static str| {
            move |staging: &Path| {
                let made = staging.join("made");
                fs::write(&made, text).unwrap();
                made
            }
        };
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(text(&shared(&name, make("first"))), "first");
        assert_eq!(text(&shared(&name, make("second"))), "first");
        let kept = shared_while(&name, |kept| text(kept) == "second", make("third"));
        assert_eq!(text(&kept), "third");
        fs::remove_file(kept.with_extension("lock")).unwrap();
        fs::remove_file(kept).unwrap();
    }
}
