//! `ballast image`: the built-in guest as a file, for other VMMs and for those who want to look inside.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, Status};
use crate::boot::built_in;

/// Write the built-in guest to a file
///
/// It is a static ELF image with a PVH note, which other VMMs boot too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast image guest.elf
  qemu-system-x86_64 -accel kvm -M microvm -m 512M -nographic -kernel guest.elf

An existing file is replaced.")]
pub(super) struct Image {
    /// File to write
    file: PathBuf,
}

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{path:?}")]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

impl Image {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        let failed = |source| WriteError {
            path: self.file.clone(),
            source,
        };
        write(&self.file, built_in::image())
            .map_err(failed)
            .map_err(Failure::run_time)?;
        Ok(Status::Done)
    }
}

/// Writes all of it or reports why not; a file that is only half there is the file system's to report, at `sync_all`.
fn write(path: &Path, image: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(image)?;
    // Special files such as /dev/null cannot be synchronised, and lose nothing.
    if file.metadata()?.is_file() {
        file.sync_all()
    } else {
        Ok(())
    }
}
