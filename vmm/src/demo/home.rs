//! A directory of the demo's own, in which its VMs register and write their serial output; it goes away with the value.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic;
use std::path::{Path, PathBuf};

use super::error::DemoError;
use crate::control::registry::RuntimeDir;

/// How many names are tried before the temporary directory counts as unusable.
const ATTEMPTS: u32 = 100;

/// The directory.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
}

impl Home {
    /// Makes one among the temporary files, for its owner only.
    ///
    /// # Errors
    /// The temporary directory is not there or not writable.
    pub(super) fn new() -> Result<Self, DemoError> {
        let base = std::env::temp_dir();
        let pid = std::process::id();
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for attempt in 0..ATTEMPTS {
            let path = base.join(format!("ballast-demo-{pid}-{attempt}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(source) => return Err(DemoError::File { path, source }),
            }
        }
        Err(DemoError::File {
            path: base,
            source: last,
        })
    }

    /// Lets a panic of any thread, which ends the process without dropping anything, remove the directory too.
    pub(super) fn remove_on_panic(&self) {
        let path = self.path.clone();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let _ = fs::remove_dir_all(&path);
            before(info);
        }));
    }

    /// Where it is: the `XDG_RUNTIME_DIR` of the VMs.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where VMs that were started with this home are registered.
    #[must_use]
    pub(super) fn registry(&self) -> RuntimeDir {
        RuntimeDir::at(self.path.join("ballast"))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // There is nobody left to tell, and a temporary directory is cleaned by the system in the end.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_home_is_private_unlike_any_other_and_goes_away_with_all_that_is_in_it() {
        let (one, other) = (Home::new().expect("made"), Home::new().expect("made"));
        assert_ne!(one.path(), other.path());
        let mode = fs::metadata(one.path()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(one.path().join("a.serial"), "text").expect("writable");
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }
}
