//! Executables made address spaces: the one that the image carries, and those of the file system.

use super::{CONTEXT_CACHE, Program};
use crate::files;
use crate::kernel::{Kernel, Memory};
use crate::machine::cpu::this_cpu;
use crate::machine::image::{self, PROGRAMS};
use crate::machine::nucleus::Context;
use crate::machine::object_cache::CacheBox;
use core::fmt;
use guest_kernel::elf::{ElfError, Executable, SegmentKind};
use guest_mm::mm::{CopyError, MmapError};
use guest_mm::pagetable::MapError;
use guest_mm::slab::NoObject;
use guest_mm::{Backing, Entry, FixedMapping, HugeAdvice, MapRequest, PAGE_SIZE, Pfn, Place, Prot, SpaceId};

/// Where a program's segments may lie. Its stack is above them.
const PROGRAM_ADDRESSES: core::ops::Range<u64> = 0x40_0000..SEGMENTS_END;
const STACK_TOP: u64 = 0x1000_0000;
/// Bytes that a stack may grow to, and what it starts with.
const STACK_BYTES: u64 = 1 << 20;
const FIRST_STACK_BYTES: u64 = 64 << 10;
/// Where the segments of an executable end at the latest; above them is room for the heap.
const SEGMENTS_END: u64 = 0x800_0000;

/// A new address space with the executable that the image carries and a stack in it, and the registers to start with.
pub(super) fn load(mm: &Memory) -> Result<(SpaceId, CacheBox<Context>), LoadError> {
    let executable = Executable::parse(&PROGRAMS, PROGRAM_ADDRESSES).map_err(LoadError::File)?;
    let space = new_space(mm)?;
    let filled = fill(mm, space, &executable).and_then(|()| finish(mm, space, &executable));
    filled.map_err(|error| give_up(mm, space, error))
}

/// The same with an executable of the file system, whose code and constants stay there until they are touched.
pub(super) async fn load_file(
    kernel: &'static Kernel,
    program: &Program,
) -> Result<(SpaceId, CacheBox<Context>), LoadError> {
    let image = files::open_program(kernel, program.name()).await;
    let image = image.map_err(LoadError::Open)?;
    let loaded = async {
        let executable = image.executable(PROGRAM_ADDRESSES).map_err(LoadError::File)?;
        let space = new_space(&kernel.mm())?;
        let filled = match image.fill(program, space, &executable).await {
            Ok(()) => finish(&kernel.mm(), space, &executable),
            Err(error) => Err(LoadError::Fill(error)),
        };
        filled.map_err(|error| give_up(&kernel.mm(), space, error))
    };
    let loaded = loaded.await;
    image.close().await;
    loaded
}

fn new_space(mm: &Memory) -> Result<SpaceId, LoadError> {
    let nucleus = Pfn::containing(image::nucleus()).ok_or(LoadError::File(ElfError::Truncated))?;
    let bits = Entry::PRESENT | Entry::WRITABLE | Entry::HUGE | Entry::ACCESSED | Entry::DIRTY;
    let fixed = FixedMapping::Leaf {
        va: image::nucleus(),
        entry: Entry::new(nucleus, bits),
    };
    mm.create_space(this_cpu(), &[fixed]).map_err(LoadError::Space)
}

fn give_up(mm: &Memory, space: SpaceId, error: LoadError) -> LoadError {
    // Nothing of a space that never ran is under migration.
    let _ = mm.destroy_space(this_cpu(), space);
    error
}

/// Adds heap and stack to a space that has all segments, and makes the registers.
fn finish(
    mm: &Memory,
    space: SpaceId,
    executable: &Executable<'_>,
) -> Result<(SpaceId, CacheBox<Context>), LoadError> {
    let end = executable
        .segments()
        .map(|segment| segment.address + segment.size)
        .max();
    mm.set_heap(space, end.unwrap_or(PROGRAM_ADDRESSES.start));
    let stack = MapRequest {
        len: FIRST_STACK_BYTES,
        place: Place::Fixed(STACK_TOP - FIRST_STACK_BYTES),
        prot: Prot::READ.with(Prot::WRITE),
        backing: Backing::Stack {
            most_bytes: STACK_BYTES,
        },
    };
    mm.mmap(space, &stack).map_err(LoadError::Area)?;
    let root = mm.space(space).map_or(0, |space| space.root().gpa());
    let context = Context::new(root, executable.entry(), STACK_TOP);
    let context = CONTEXT_CACHE.store(context).map_err(LoadError::Context)?;
    Ok((space, context))
}

fn fill(mm: &Memory, space: SpaceId, executable: &Executable<'_>) -> Result<(), LoadError> {
    let area = |mm: &Memory, start: u64, end: u64, prot| {
        let start = start / PAGE_SIZE * PAGE_SIZE;
        let request = MapRequest {
            len: end - start,
            place: Place::Fixed(start),
            prot,
            backing: Backing::Anonymous(HugeAdvice::NoHuge),
        };
        mm.mmap(space, &request).map_err(LoadError::Area)
    };
    for segment in executable.segments() {
        let prot = match segment.kind {
            SegmentKind::Code => Prot::READ.with(Prot::EXEC),
            SegmentKind::Constants => Prot::READ,
            SegmentKind::Data => Prot::READ.with(Prot::WRITE),
        };
        area(mm, segment.address, segment.address + segment.size, prot)?;
        mm.load(this_cpu(), space, segment.address, segment.bytes)
            .map_err(LoadError::Copy)?;
    }
    Ok(())
}

/// Why a program could not be loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    Open(files::ImageError),
    Fill(files::ImageError),
    File(ElfError),
    Space(MapError),
    Area(MmapError),
    Copy(CopyError),
    Context(NoObject),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) | Self::Fill(error) => error.fmt(f),
            Self::File(error) => error.fmt(f),
            Self::Space(error) => error.fmt(f),
            Self::Area(error) => error.fmt(f),
            Self::Copy(error) => error.fmt(f),
            Self::Context(error) => error.fmt(f),
        }
    }
}
