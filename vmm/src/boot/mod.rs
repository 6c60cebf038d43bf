//! From a payload to a guest that can run: the kernel image, the initial RAM disk, the command line, the ACPI tables
//! and the structure that tells the guest where all of them are.
//!
//! Two kinds of kernel boot: an ELF image with a PVH note ([`pvh`]) and a bzImage ([`linux`]). What the file says is
//! checked before anything is loaded: a file that is wrong ends with one line that names the value and the rule.

pub mod acpi;
pub mod built_in;
mod bzimage;
pub mod cmdline;
mod elf;
mod image;
mod initrd;
pub mod linux;
mod memory_map;
pub mod pvh;
mod reset_vector;

pub use cmdline::CommandLine;
pub use image::KernelImage;
pub use initrd::{Initrd, InitrdFile};

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestRegionCollection};

use crate::hv::BootState;
use crate::memory::RamRegion;

/// Boot RAM, as the loaders write to it.
pub type BootRam = GuestRegionCollection<RamRegion>;

/// Why a payload cannot boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel is of no kind that boots.
    #[error("{name}: begins with {found}: neither an x86-64 ELF image with a PVH note nor a bzImage")]
    UnknownFormat {
        /// The image.
        name: String,
        /// Its first bytes.
        found: String,
    },
    /// The image is of a known format, but not one that boots.
    #[error("{name}: {problem}")]
    BadImage {
        /// The image.
        name: String,
        /// The value and the rule.
        problem: String,
    },
    /// The image ends before what it says it holds.
    #[error("{name}: truncated: {what} ends at byte {end}, the file at byte {size}")]
    Truncated {
        /// The image.
        name: String,
        /// What is cut off.
        what: String,
        /// Where that ends, in bytes.
        end: u64,
        /// Size of the file, in bytes.
        size: u64,
    },
    /// There is no room for it.
    #[error(
        "{name}: does not fit in memory: {what} needs {start:#x}..{end:#x}, and RAM there is {ram_start:#x}..{ram_end:#x}"
    )]
    NoRoom {
        /// The image.
        name: String,
        /// What does not fit.
        what: String,
        /// First guest-physical address it needs.
        start: u64,
        /// First address behind it.
        end: u64,
        /// First address of RAM it could have.
        ram_start: u64,
        /// First address behind that RAM.
        ram_end: u64,
    },
    /// The command line is no C string, or too long for Linux.
    #[error("command line of {len} bytes: at most {max} printable ones are allowed")]
    CommandLine {
        /// Its length in bytes.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// A program of the built-in guest cannot be written on the command line.
    #[error("program {0:?}: must be 1 or more printable characters other than a double quote")]
    Program(String),
    /// The tables do not fit where the layout puts them.
    #[error("the ACPI tables take {size} bytes, and there is room for {room}")]
    Tables {
        /// Their size in bytes.
        size: usize,
        /// Room in bytes.
        room: usize,
    },
    /// Guest memory refused a write that was checked before: a defect of the VMM.
    #[error("cannot write boot data: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Everything that goes into the guest before it runs.
#[derive(Debug)]
pub struct Payload {
    /// The kernel.
    pub kernel: KernelImage,
    /// The initial RAM disk.
    pub initrd: Option<InitrdFile>,
    /// The command line.
    pub cmdline: CommandLine,
}

impl Payload {
    /// Loads everything, as often as the guest boots, into `ram` (boot RAM of `memory` bytes) and says how the boot CPU starts. The ACPI tables
    /// must be there, or come, at `rsdp`.
    ///
    /// # Errors
    /// See [`BootError`]; `ram` may hold parts of the payload then.
    pub fn load(&mut self, ram: &BootRam, memory: u64, rsdp: u64) -> Result<BootState, BootError> {
        let mut cmdline = self.cmdline.as_bytes().to_vec();
        cmdline.push(0);
        ram.write_slice(&cmdline, GuestAddress(crate::machine::layout::CMDLINE))?;
        reset_vector::write_reset_vector(ram)?;
        let loaded = self.kernel.load(ram, memory)?;
        let initrd = self
            .initrd
            .as_mut()
            .map(|file| file.load(ram, memory, loaded.limits()))
            .transpose()?;
        match loaded {
            image::Loaded::Pvh { entry, .. } => pvh::write_start_info(ram, memory, rsdp, initrd)
                .map(|start_info| BootState::Pvh { entry, start_info }),
            image::Loaded::Linux { entry, header, .. } => {
                linux::write_boot_params(ram, memory, rsdp, initrd, &header)?;
                linux::write_tables(ram, entry)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
