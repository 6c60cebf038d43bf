//! Opening a disk: what the file is, how large its blocks are, whether it can discard.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use devices::block::{DiscardLimits, DiskAccess, Limits};
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use virtio_wire::block::SECTOR_SIZE;

use super::DiskError;
use crate::spec::{DiskCache, DiskSpec};

/// One sector as the type that block sizes have.
const SECTOR: u32 = 512;
const _: () = assert!(SECTOR as u64 == SECTOR_SIZE);

/// An open and locked disk.
pub(super) struct OpenDisk {
    pub(super) file: File,
    pub(super) limits: Limits,
}

impl OpenDisk {
    pub(super) fn open(spec: &DiskSpec) -> Result<Self, DiskError> {
        let path = || spec.path.display().to_string();
        let failed = |source| DiskError::Open { path: path(), source };
        let direct = match spec.cache {
            DiskCache::Host => 0,
            DiskCache::None => libc::O_DIRECT,
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(spec.access == DiskAccess::ReadWrite)
            // Nothing to wait for: a FIFO is refused below.
            .custom_flags(direct | libc::O_NONBLOCK)
            .open(&spec.path);
        let mut file = match opened {
            Err(error) if direct != 0 && error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(DiskError::NoDirectIo { path: path() });
            }
            other => other.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(DiskError::Kind { path: path() });
        }
        lock(&file, spec.access).map_err(|error| match error {
            TryLockError::WouldBlock => DiskError::InUse { path: path() },
            TryLockError::Error(source) => failed(source),
        })?;
        let block_size = if is_device {
            rustix::fs::ioctl_blksszget(&file).map_err(|error| failed(error.into()))?
        } else if direct != 0 {
            direct_io_block(&file).map_err(failed)?
        } else {
            SECTOR
        };
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if bytes == 0 || !bytes.is_multiple_of(block_size.into()) {
            return Err(DiskError::Size {
                path: path(),
                bytes,
                unit: block_size,
            });
        }
        let writable = spec.access == DiskAccess::ReadWrite;
        let discard = match (writable, is_device) {
            (false, _) => None,
            (true, true) => device_discards(&metadata),
            (true, false) => file_discards(&file, bytes, &metadata),
        };
        let limits = Limits {
            capacity_sectors: bytes / SECTOR_SIZE,
            block_size: block_size.max(SECTOR),
            access: spec.access,
            discard,
        };
        Ok(Self { file, limits })
    }
}

fn lock(file: &File, access: DiskAccess) -> Result<(), TryLockError> {
    match access {
        DiskAccess::ReadOnly => file.try_lock_shared(),
        DiskAccess::ReadWrite => file.try_lock(),
    }
}

/// What offsets of direct I/O on a file have to be multiples of. Kernels before 6.1 do not say; what every file system
/// takes is a page.
fn direct_io_block(file: &File) -> io::Result<u32> {
    let statx = rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    Ok(match statx.stx_dio_offset_align {
        0 => 4096,
        align => align,
    })
}

/// A hole punched behind the end of a file changes nothing, and tells whether the file system can do it.
fn file_discards(file: &File, bytes: u64, metadata: &fs::Metadata) -> Option<DiscardLimits> {
    let unit = metadata.blksize().max(SECTOR_SIZE);
    let behind = bytes.checked_next_multiple_of(unit)?;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, behind, unit).ok()?;
    discard_in_units_of(unit)
}

/// What the kernel says of a block device, or of the disk that a partition is on
/// (`Documentation/ABI/stable/sysfs-block`).
fn device_discards(metadata: &fs::Metadata) -> Option<DiscardLimits> {
    let device = metadata.rdev();
    let sysfs = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        libc::major(device),
        libc::minor(device)
    ));
    let number = |name: &str| -> Option<u64> {
        let places = [sysfs.join("queue"), sysfs.join("../queue")];
        let text = places
            .iter()
            .find_map(|place| fs::read_to_string(place.join(name)).ok());
        text?.trim().parse().ok()
    };
    number("discard_max_bytes").filter(|most| *most > 0)?;
    discard_in_units_of(number("discard_granularity")?)
}

fn discard_in_units_of(bytes: u64) -> Option<DiscardLimits> {
    let alignment_sectors = u32::try_from(bytes / SECTOR_SIZE).ok()?.max(1);
    Some(DiscardLimits { alignment_sectors })
}
