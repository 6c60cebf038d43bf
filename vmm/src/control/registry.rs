//! Where running VMs are found: a directory with two files for each VM.
//!
//! `NAME.lock` holds the VM's process id, and a lock (`flock`) that the process keeps for its whole life. Whether the
//! lock is taken is the proof of life: the kernel drops it however the process ends, and process ids that come round
//! again mean nothing. `NAME.sock` is the control socket. Whoever finds the files of a dead VM removes them.
//!
//! Everything here happens under a lock on the directory itself, held for microseconds. So nobody mistakes another's
//! probe for a living VM, and nobody removes the files of a VM that has just started.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::spec::VmName;

/// The longest path of a unix socket, in bytes: `sun_path` of unix(7) less its terminating zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// The extension of lock files.
const LOCK: &str = "lock";
/// The extension of control sockets.
const SOCKET: &str = "sock";

/// Why a VM cannot be registered or found.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The runtime directory cannot be created, opened, or listed.
    #[error("the runtime directory {path:?} cannot be used")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could put their sockets in the place of ours.
    #[error("the runtime directory {path:?} has mode {mode:03o}: only its owner may write to it")]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A VM of that name is running.
    #[error("name {name:?}: a VM of this name is running as process {pid}")]
    Taken {
        /// The name.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// The system cannot take a socket path this long.
    #[error("the socket path {path:?} has {length} bytes: a socket path has at most {MAX_SOCKET_PATH}")]
    PathTooLong {
        /// The path of the socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// There is no VM of that name.
    #[error("name {name:?}: no VM of this name is running (looked in {directory:?})")]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// There was a VM of that name.
    #[error("name {name:?}: the VM of this name (process {pid}) has exited")]
    Exited {
        /// The name.
        name: String,
        /// The process it had.
        pid: u32,
    },
    /// One of the VM's files cannot be written, read, or removed.
    #[error("{path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The directory in which the VMs of one user are registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
}

/// A running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: VmName,
    /// Its process.
    pub pid: u32,
    /// Its control socket.
    pub socket: PathBuf,
}

/// A VM's place in the registry, which is its own until this value is dropped.
#[derive(Debug)]
pub struct Registration {
    directory: RuntimeDir,
    name: VmName,
    /// Open, and with it locked, for as long as the VM lives.
    _lock: File,
}

impl RuntimeDir {
    /// `$XDG_RUNTIME_DIR/ballast`, or `/run/ballast` where that is not set to an absolute path (as the XDG base directory
    /// specification demands of it).
    #[must_use]
    pub fn from_env() -> Self {
        let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = xdg
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| PathBuf::from("/run"));
        Self::at(base.join("ballast"))
    }

    /// The registry in `path`, which is created when the first VM is registered.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the name for a VM that lives in this process, and opens its control socket. From then on clients can connect,
    /// and wait for their answers until the socket is served.
    ///
    /// # Errors
    /// The name is taken, or the directory or its files cannot be used.
    pub fn register(&self, name: &VmName) -> Result<(Registration, UnixListener), RegistryError> {
        let socket = self.socket(name);
        let length = socket.as_os_str().as_bytes().len();
        if length > MAX_SOCKET_PATH {
            return Err(RegistryError::PathTooLong { path: socket, length });
        }
        self.create().map_err(|source| self.unusable(source))?;
        let _guard = self.lock().map_err(|source| self.unusable(source))?;
        self.check_mode()?;
        let path = self.lock_file(name);
        let at = |source| RegistryError::File {
            path: path.clone(),
            source,
        };
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RegistryError::Taken {
                    name: name.to_string(),
                    pid: read_pid(&path),
                });
            }
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        lock.set_len(0).map_err(at)?;
        writeln!(lock, "{}", std::process::id()).map_err(at)?;
        remove_if_there(&socket)?;
        let bound = UnixListener::bind(&socket);
        let listener = bound.map_err(|source| RegistryError::File { path: socket, source })?;
        Ok((
            Registration {
                directory: self.clone(),
                name: name.clone(),
                _lock: lock,
            },
            listener,
        ))
    }

    /// The running VM of that name. The files of a dead one are removed.
    ///
    /// # Errors
    /// No such VM is running, or the directory cannot be used.
    pub fn find(&self, name: &VmName) -> Result<Entry, RegistryError> {
        let unknown = || RegistryError::Unknown {
            name: name.to_string(),
            directory: self.path.clone(),
        };
        let _guard = match self.lock() {
            Ok(guard) => guard,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
            Err(source) => return Err(self.unusable(source)),
        };
        let path = self.lock_file(name);
        if !path.exists() {
            return Err(unknown());
        }
        let pid = read_pid(&path);
        if self.is_alive(name)? {
            return Ok(Entry {
                name: name.clone(),
                pid,
                socket: self.socket(name),
            });
        }
        self.remove_files(name)?;
        Err(RegistryError::Exited {
            name: name.to_string(),
            pid,
        })
    }

    /// All running VMs, by name. The files of dead ones are removed.
    ///
    /// # Errors
    /// The directory or one of its files cannot be used. A directory that does not exist holds no VMs.
    pub fn list(&self) -> Result<Vec<Entry>, RegistryError> {
        let _guard = match self.lock() {
            Ok(guard) => guard,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.unusable(source)),
        };
        let mut entries = Vec::new();
        for name in self.names().map_err(|source| self.unusable(source))? {
            if self.is_alive(&name)? {
                let pid = read_pid(&self.lock_file(&name));
                entries.push(Entry {
                    socket: self.socket(&name),
                    name,
                    pid,
                });
            } else {
                self.remove_files(&name)?;
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The names that have a lock file, dead or alive. Files of others are passed over.
    fn names(&self) -> io::Result<Vec<VmName>> {
        let mut names = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let path = file?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if path.extension().is_some_and(|extension| extension == LOCK) {
                names.extend(stem.and_then(|stem| VmName::new(stem).ok()));
            }
        }
        Ok(names)
    }

    /// Whether the process that registered the name lives. The directory is locked.
    fn is_alive(&self, name: &VmName) -> Result<bool, RegistryError> {
        let path = self.lock_file(name);
        let at = |source| RegistryError::File {
            path: path.clone(),
            source,
        };
        match File::open(&path).map_err(at)?.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(at(source)),
        }
    }

    /// Removes what a VM left. The directory is locked.
    fn remove_files(&self, name: &VmName) -> Result<(), RegistryError> {
        remove_if_there(&self.socket(name))?;
        remove_if_there(&self.lock_file(name))
    }

    /// Makes the directory, for its owner only.
    fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Locks the directory until the value is dropped.
    fn lock(&self) -> io::Result<File> {
        let directory = File::open(&self.path)?;
        directory.lock()?;
        Ok(directory)
    }

    /// Refuses a directory in which others could replace a socket.
    fn check_mode(&self) -> Result<(), RegistryError> {
        let metadata = fs::metadata(&self.path).map_err(|source| self.unusable(source))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(RegistryError::Exposed {
                path: self.path.clone(),
                mode,
            });
        }
        Ok(())
    }

    fn unusable(&self, source: io::Error) -> RegistryError {
        RegistryError::Directory {
            path: self.path.clone(),
            source,
        }
    }

    fn lock_file(&self, name: &VmName) -> PathBuf {
        self.path.join(format!("{name}.{LOCK}"))
    }

    fn socket(&self, name: &VmName) -> PathBuf {
        self.path.join(format!("{name}.{SOCKET}"))
    }
}

impl Registration {
    /// The registered name.
    #[must_use]
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// The control socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.socket(&self.name)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Without the directory's lock somebody could see the lock file locked and the socket gone.
        let guard = self.directory.lock();
        let removed = self.directory.remove_files(&self.name);
        if let (Err(error), _) | (Ok(_), Err(RegistryError::File { source: error, .. })) = (&guard, &removed)
        {
            tracing::warn!("the files of VM {} could not be removed: {error}", self.name);
        }
    }
}

/// The process id in a lock file; 0 if it holds none.
fn read_pid(path: &Path) -> u32 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Removes a file that may not exist.
fn remove_if_there(path: &Path) -> Result<(), RegistryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| RegistryError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
