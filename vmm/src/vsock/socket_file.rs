//! A listening unix socket whose file goes with it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::Endpoint;

/// The file of a socket; removed when dropped, unless somebody else has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path` without waiting. A socket that is there and that nobody answers, as a VM that was killed leaves
    /// it behind, is replaced.
    ///
    /// # Errors
    /// The path cannot be had.
    pub fn listen(path: &Path) -> io::Result<(UnixListener, Self)> {
        if is_abandoned(path) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let file = fs::symlink_metadata(path)?;
        listener.set_nonblocking(true)?;
        let identity = (file.dev(), file.ino());
        let path = path.to_owned();
        Ok((listener, Self { path, identity }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |file: fs::Metadata| (file.dev(), file.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Nobody is left to tell of a file that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether there is a socket that nobody listens on.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && Endpoint::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
