//! Why a disk cannot be used. Each message names the file and the rule.

use std::io;

use thiserror::Error;

/// What is wrong with a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file cannot be opened, or not be asked what it is.
    #[error("disk {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("disk {path}: neither a file nor a block device")]
    Kind {
        /// The file.
        path: String,
    },
    /// A size that no disk has.
    #[error("disk {path}: {bytes} bytes are not a positive multiple of {unit}, a disk's block")]
    Size {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The block size in bytes.
        unit: u32,
    },
    /// Another VM, or somebody else who locks files, has it.
    #[error(
        "disk {path}: in use by somebody else (a disk that is written has one user, a read-only one has readers only)"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// The file cannot be read and written past the host's cache.
    #[error("disk {path}: its file system has no direct I/O")]
    NoDirectIo {
        /// The file.
        path: String,
    },
    /// The engine cannot start.
    #[error("disk {path}: cannot start its I/O: {source}")]
    Engine {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}
