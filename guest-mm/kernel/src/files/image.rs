//! Executables in the file system: code and constants are private mappings of the file, read in when they are touched; data are copied,
//! as they are written to.

use super::call::fs_error;
use super::{RootFs, steps};
use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::Program;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use guest_kernel::elf::{ElfError, Executable, Segment, SegmentKind};
use guest_kernel::physical::to_usize;
use guest_mm::fs::mounted::{File, Missing};
use guest_mm::mm::mapping::{FileError, ReadAhead};
use guest_mm::mm::{CopyError, FileArea, MmapError, Sharing};
use guest_mm::{Backing, HugeAdvice, MapRequest, PAGE_SIZE, Place, Prot, SpaceId};
use guest_programs::abi::Error;

/// Bytes in which the headers of an executable are.
const HEAD_BYTES: usize = 4096;

/// An executable file, open.
pub(crate) struct Image {
    kernel: &'static Kernel,
    root: &'static RootFs,
    file: Arc<File>,
    head: Vec<u8>,
}

/// Why a file cannot be run.
#[derive(Debug)]
pub(crate) enum ImageError {
    NoFileSystem,
    Open(Error),
    Read(FileError),
    Area(MmapError),
    Copy(CopyError),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFileSystem => f.write_str("there is no file system (root=)"),
            Self::Open(error) => write!(f, "{error:?}"),
            Self::Read(error) => error.fmt(f),
            Self::Area(error) => error.fmt(f),
            Self::Copy(error) => error.fmt(f),
        }
    }
}

/// Opens the executable at a path.
///
/// # Errors
/// There is none, or it cannot be read.
pub(crate) async fn open(kernel: &'static Kernel, path: &str) -> Result<Image, ImageError> {
    let root = kernel.files.root().ok_or(ImageError::NoFileSystem)?;
    let file = steps(root.open(path.as_bytes(), Missing::Fail)).await;
    let file = file.map_err(|error| ImageError::Open(fs_error(error)))?;
    let mut image = Image {
        kernel,
        root,
        file,
        head: Vec::new(),
    };
    match image.read(0, HEAD_BYTES).await {
        Ok(head) => {
            image.head = head;
            Ok(image)
        }
        Err(error) => {
            image.close().await;
            Err(error)
        }
    }
}

impl Image {
    /// Where its segments go, which must be within `addresses`.
    pub(crate) fn executable(&self, addresses: Range<u64>) -> Result<Executable<'_>, ElfError> {
        Executable::parse_head(&self.head, self.root.size(&self.file), addresses)
    }

    /// Makes the areas of an address space that the executable has.
    pub(crate) async fn fill(
        &self,
        program: &Program,
        space: SpaceId,
        executable: &Executable<'_>,
    ) -> Result<(), ImageError> {
        for segment in executable.segments() {
            let same_offset = segment.offset % PAGE_SIZE == segment.address % PAGE_SIZE;
            if segment.kind != SegmentKind::Data && same_offset && segment.size == segment.file_size {
                self.map(space, &segment)?;
            } else {
                self.copy(program, space, &segment).await?;
            }
        }
        Ok(())
    }

    fn map(&self, space: SpaceId, segment: &Segment<'_>) -> Result<(), ImageError> {
        let first = u32::try_from(segment.offset / PAGE_SIZE).unwrap_or(u32::MAX);
        let area = FileArea::new(self.file.mapping(), first, Sharing::Private);
        self.area(space, segment, Backing::File(area))
    }

    async fn copy(&self, program: &Program, space: SpaceId, segment: &Segment<'_>) -> Result<(), ImageError> {
        self.area(space, segment, Backing::Anonymous(HugeAdvice::NoHuge))?;
        let bytes = self.read(segment.offset, to_usize(segment.file_size)).await?;
        let copied = fault::copy(self.kernel, program, |mm| {
            mm.load(this_cpu(), space, segment.address, &bytes)
        });
        copied.await.map_err(ImageError::Copy)
    }

    fn area(&self, space: SpaceId, segment: &Segment<'_>, backing: Backing) -> Result<(), ImageError> {
        let start = segment.address / PAGE_SIZE * PAGE_SIZE;
        let request = MapRequest {
            len: segment.address + segment.size - start,
            place: Place::Fixed(start),
            prot: match segment.kind {
                SegmentKind::Code => Prot::READ.with(Prot::EXEC),
                SegmentKind::Constants => Prot::READ,
                SegmentKind::Data => Prot::READ.with(Prot::WRITE),
            },
            backing,
        };
        let mapped = self.kernel.mm().mmap(space, &request);
        mapped.map(|_| ()).map_err(ImageError::Area)
    }

    /// Bytes of the file, as far as it goes.
    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut ahead = ReadAhead::default();
        let to = |_: usize, part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        };
        let read = steps(self.root.read(&self.file, &mut ahead, (offset, len), to)).await;
        read.map_err(ImageError::Read)?;
        Ok(bytes)
    }

    /// It is not needed any more; what is mapped of it stays.
    pub(crate) async fn close(self) {
        steps(self.root.close(&self.file)).await;
    }
}
