//! The initial RAM disk: as high in low RAM as the kernel allows, so that the kernel has its room below.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::memory_map::low_ram_end;
use super::{BootError, BootRam};

const PAGE: u64 = 4096;

/// An initial RAM disk that has been opened but not loaded.
#[derive(Debug)]
pub struct InitrdFile {
    path: PathBuf,
    file: File,
    size: u64,
}

/// An initial RAM disk in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address, a multiple of the page size.
    pub gpa: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Where an initial RAM disk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InitrdLimits {
    /// First address behind the kernel.
    pub(super) lowest: u64,
    /// Last address that the kernel can take.
    pub(super) highest: u64,
}

impl InitrdFile {
    /// Opens the file.
    ///
    /// # Errors
    /// It cannot be read, or is empty or no file.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() == 0 {
            let problem = format!(
                "{} bytes: an initial RAM disk must be a regular file, and not empty",
                metadata.len()
            );
            return Err(BootError::BadImage {
                name: path.display().to_string(),
                problem,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size: metadata.len(),
        })
    }

    /// Loads it into `ram`, boot RAM of `memory` bytes.
    pub(super) fn load(
        &mut self,
        ram: &BootRam,
        memory: u64,
        limits: InitrdLimits,
    ) -> Result<Initrd, BootError> {
        let ram_end = low_ram_end(memory).min(limits.highest.saturating_add(1));
        let gpa = ram_end.checked_sub(self.size).map(|gpa| gpa / PAGE * PAGE);
        let Some(gpa) = gpa.filter(|gpa| *gpa >= limits.lowest) else {
            return Err(BootError::NoRoom {
                name: self.path.display().to_string(),
                what: format!("an initial RAM disk of {} bytes behind the kernel", self.size),
                start: limits.lowest,
                end: limits.lowest.saturating_add(self.size),
                ram_start: limits.lowest,
                ram_end,
            });
        };
        let too_long = || BootError::BadImage {
            name: self.path.display().to_string(),
            problem: format!("{} bytes are beyond this host's address space", self.size),
        };
        let len = usize::try_from(self.size).map_err(|_| too_long())?;
        // A file that shrank since it was opened ends here, too.
        self.file.rewind().map_err(|source| BootError::File {
            path: self.path.clone(),
            source,
        })?;
        ram.read_exact_volatile_from(GuestAddress(gpa), &mut self.file, len)?;
        Ok(Initrd { gpa, size: self.size })
    }
}
