//! An image file as the blocks of a file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_mm::disk::IoError;
use guest_mm::fs::pagefs::{Block, Blocks, FsError};
use guest_mm::pfn::{PAGE_BYTES, PAGE_SIZE};

/// An image cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    #[error("{path:?}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path:?}")]
    FileSystem { path: PathBuf, source: FsError },
    #[error("{path:?} is neither a file nor a directory")]
    Special { path: PathBuf },
    #[error("there are no programs in the built-in guest")]
    NoPrograms,
    #[error("an image without a size: {0}")]
    Size(#[source] io::Error),
}

impl ImageError {
    pub(super) fn file(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::File { path, source }
    }

    pub(super) fn make(path: &Path, source: FsError) -> Self {
        let path = path.to_owned();
        Self::FileSystem { path, source }
    }
}

/// The blocks of a file.
#[derive(Debug)]
pub(super) struct FileBlocks {
    file: File,
    nr_blocks: u64,
}

impl FileBlocks {
    /// An empty file that shall have this size, rounded down to a block.
    pub(super) fn new(file: File, size: u64) -> Result<Self, ImageError> {
        let nr_blocks = size / PAGE_SIZE;
        file.set_len(nr_blocks * PAGE_SIZE).map_err(ImageError::Size)?;
        Ok(Self { file, nr_blocks })
    }

    /// What is there, to be read only.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let open = || {
            let file = File::open(path)?;
            let nr_blocks = file.metadata()?.len() / PAGE_SIZE;
            Ok(Self { file, nr_blocks })
        };
        open().map_err(|source| ImageError::file(path, source))
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }
}

impl Blocks for FileBlocks {
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    async fn read(&self, block: u32) -> Result<Box<Block>, IoError> {
        let mut contents = Box::new([0; PAGE_BYTES]);
        let read = self
            .file
            .read_exact_at(&mut contents[..], u64::from(block) * PAGE_SIZE);
        read.map(|()| contents).map_err(|_| IoError)
    }

    async fn write(&self, block: u32, contents: &Block) -> Result<(), IoError> {
        let written = self.file.write_all_at(contents, u64::from(block) * PAGE_SIZE);
        written.map_err(|_| IoError)
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.file.sync_data().map_err(|_| IoError)
    }
}

/// Makes the file at `path`, or makes it anew: what was there goes only when all of the new one is written.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(File) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let made = File::create_new(&beside)
        .map_err(|source| ImageError::file(&beside, source))
        .and_then(write)
        .and_then(|()| std::fs::rename(&beside, path).map_err(|source| ImageError::file(path, source)));
    if made.is_err() {
        // If it was not made, there is nothing to take away.
        let _ = std::fs::remove_file(&beside);
    }
    made
}
