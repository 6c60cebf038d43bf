//! A kernel image, wherever it comes from: recognised by its first bytes, then loaded as what it is.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ReadVolatile;

use super::initrd::InitrdLimits;
use super::{BootError, BootRam, bzimage, elf};

/// A kernel image that has been recognised but not loaded.
#[derive(Debug)]
pub struct KernelImage {
    name: String,
    source: Source,
    size: u64,
    format: Format,
}

#[derive(Debug)]
enum Source {
    File(File),
    Embedded(Cursor<&'static [u8]>),
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Elf,
    BzImage,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) enum Loaded {
    /// An ELF image.
    Pvh {
        /// Where its PVH note says it begins.
        entry: u32,
        /// First address behind it.
        end: u64,
    },
    /// A bzImage.
    Linux {
        /// Its 64-bit entry point.
        entry: u64,
        /// First address behind all that it uses before it knows its memory map.
        end: u64,
        /// Its setup header, as the file has it.
        header: Box<setup_header>,
    },
}

impl Loaded {
    /// Where an initial RAM disk may be.
    pub(super) fn limits(&self) -> InitrdLimits {
        match self {
            Self::Pvh { end, .. } => InitrdLimits {
                lowest: *end,
                highest: u32::MAX.into(),
            },
            Self::Linux { end, header, .. } => InitrdLimits {
                lowest: *end,
                highest: header.initrd_addr_max.into(),
            },
        }
    }
}

impl KernelImage {
    /// Opens a kernel file.
    ///
    /// # Errors
    /// It cannot be read, or is neither an ELF image nor a bzImage.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() {
                "a directory"
            } else {
                "no regular file"
            };
            let problem = format!("is {what}: a kernel must be a regular file");
            return Err(BootError::BadImage {
                name: path.display().to_string(),
                problem,
            });
        }
        let mut source = Source::File(file);
        let start = source.first_bytes().map_err(unreadable)?;
        Self::recognise(path.display().to_string(), source, metadata.len(), &start)
    }

    /// A kernel that is part of this program, by the name `name`.
    ///
    /// # Errors
    /// It is neither an ELF image nor a bzImage.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, BootError> {
        let start = &bytes[..bytes.len().min(bzimage::HEADER_END)];
        let source = Source::Embedded(Cursor::new(bytes));
        Self::recognise(name.to_owned(), source, bytes.len() as u64, start)
    }

    fn recognise(name: String, source: Source, size: u64, start: &[u8]) -> Result<Self, BootError> {
        let format = if start.starts_with(&elf::MAGIC) {
            Format::Elf
        } else if bzimage::is_bzimage(start) {
            Format::BzImage
        } else {
            let found = match start {
                [] => "nothing: the file is empty".to_owned(),
                _ => start
                    .iter()
                    .take(4)
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<Vec<_>>()
                    .join(" "),
            };
            return Err(BootError::UnknownFormat { name, found });
        };
        Ok(Self {
            name,
            source,
            size,
            format,
        })
    }

    /// Loads it into `ram`, boot RAM of `memory` bytes.
    pub(super) fn load(&mut self, ram: &BootRam, memory: u64) -> Result<Loaded, BootError> {
        let (name, size) = (self.name.as_str(), self.size);
        match (&mut self.source, self.format) {
            (Source::File(file), Format::Elf) => elf::load(name, file, size, ram, memory),
            (Source::File(file), Format::BzImage) => bzimage::load(name, file, size, ram, memory),
            (Source::Embedded(bytes), Format::Elf) => elf::load(name, bytes, size, ram, memory),
            (Source::Embedded(bytes), Format::BzImage) => bzimage::load(name, bytes, size, ram, memory),
        }
    }
}

impl Source {
    fn first_bytes(&mut self) -> std::io::Result<Vec<u8>> {
        let mut start = Vec::new();
        let limit = bzimage::HEADER_END as u64;
        match self {
            Self::File(file) => file.by_ref().take(limit).read_to_end(&mut start)?,
            Self::Embedded(bytes) => bytes.by_ref().take(limit).read_to_end(&mut start)?,
        };
        Ok(start)
    }
}

/// What images are read from.
pub(super) trait ImageSource: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> ImageSource for T {}

/// For `map_err`: an image that could not be read to the end of what was checked to be there.
pub(super) fn unreadable(name: &str) -> impl Fn(std::io::Error) -> BootError {
    move |source| BootError::File {
        path: name.into(),
        source,
    }
}

/// An image of a known format that does not boot, because of the value and the rule given.
pub(super) fn bad_image(name: &str) -> impl Fn(String) -> BootError {
    move |problem| BootError::BadImage {
        name: name.to_owned(),
        problem,
    }
}

/// An image of `size` bytes that lacks part of what is named, which ends at the byte given.
pub(super) fn truncated(name: &str, size: u64) -> impl Fn(&str, u64) -> BootError {
    move |what, end| BootError::Truncated {
        name: name.to_owned(),
        what: what.to_owned(),
        end,
        size,
    }
}

/// Checks that `start..end` is in low RAM behind the boot data, for an image of the name `name`.
pub(super) fn check_room(name: &str, what: &str, start: u64, end: u64, memory: u64) -> Result<(), BootError> {
    let ram_start = crate::machine::layout::HIMEM_START;
    let ram_end = super::memory_map::low_ram_end(memory);
    if start >= ram_start && end <= ram_end {
        return Ok(());
    }
    Err(BootError::NoRoom {
        name: name.to_owned(),
        what: what.to_owned(),
        start,
        end,
        ram_start,
        ram_end,
    })
}
