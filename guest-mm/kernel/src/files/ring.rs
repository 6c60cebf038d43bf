//! Event rings: memory that a program shares with the manager, in which events appear without a call (Linux `fs/aio.c`).
//!
//! The manager writes to the frames of a ring whenever something has ended, on behalf of nobody who could wait for a page, and the program looks at them
//! whenever it likes. So they are mapped once and for all: they are taken where nothing is ever taken away, nobody moves them, nothing reclaims them
//! ([`AddressSpaceOps::kept_by`]; Takahashi, memory hotplug, 2003: "buffers of AIO events").

use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::machine::quiet;
use crate::process::Program;
use crate::syscall::copy_error;
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_mm::fs::TmpFile;
use guest_mm::mm::mapping::{AddressSpaceOps, PageLookup};
use guest_mm::mm::{FileArea, Sharing};
use guest_mm::{Backing, Frames, Gfp, MapRequest, PAGE_SIZE, Pfn, Place, Prot, SpaceId};
use guest_programs::abi::Error;
use guest_programs::aio::{EVENT_BYTES, Event, FIRST_EVENT, HEAD, TAIL, ring_bytes};

/// Who keeps the pages, for those who find them in the way.
pub(crate) const HOLDER: &str = "an event ring";

/// Pages that stay where they are.
struct Kept;

impl AddressSpaceOps for Kept {
    fn name(&self) -> &'static str {
        HOLDER
    }

    fn gfp(&self) -> Gfp {
        Gfp::HIGHUSER
    }

    fn kept_by(&self) -> Option<&'static str> {
        Some(HOLDER)
    }
}

/// The ring of a program.
pub(super) struct Ring {
    /// Its pages, which are there as long as this is.
    _file: Arc<TmpFile>,
    frames: Vec<Pfn>,
    /// Events that it has room for.
    room: u64,
}

impl Ring {
    /// Maps a ring for so many events, a power of 2; where it is for the program.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) async fn map(
        kernel: &'static Kernel,
        program: &Program,
        (space, room): (SpaceId, u64),
    ) -> Result<(Self, u64), Error> {
        let len = ring_bytes(room);
        let file = {
            let _visit = quiet::visit(this_cpu());
            kernel.ram.kept(Arc::new(Kept), len)
        };
        let request = MapRequest {
            len,
            place: Place::Anywhere,
            prot: Prot::READ.with(Prot::WRITE),
            backing: Backing::File(FileArea::new(file.mapping(), 0, Sharing::Shared)),
        };
        let address = kernel
            .mm()
            .mmap(space, &request)
            .map_err(crate::syscall::map_error)?;
        let filled = fill(kernel, program, space, (address, len)).await;
        let frames = match filled.and_then(|()| frames_of(kernel, &file, len)) {
            Ok(frames) => frames,
            Err(error) => {
                // A page of it that is on the move cannot be: nobody moves them.
                let _ = kernel.mm().munmap(this_cpu(), space, address, len);
                return Err(error);
            }
        };
        let ring = Self {
            _file: file,
            frames,
            room,
        };
        Ok((ring, address))
    }

    /// Events that it has room for.
    pub(super) const fn room(&self) -> u64 {
        self.room
    }

    /// Whether a frame is one of its.
    pub(super) fn has(&self, pfn: Pfn) -> bool {
        self.frames.contains(&pfn)
    }

    /// How many events the program says it has taken out, of the `posted` that have come: what it says must not matter to anybody else.
    pub(super) fn taken(&self, kernel: &Kernel, posted: u64) -> u64 {
        let oldest = posted.saturating_sub(self.room);
        self.read(kernel, HEAD).clamp(oldest, posted)
    }

    /// Puts event number `nth`, from 0 on, into its place, and says that it is there.
    pub(super) fn post(&self, kernel: &Kernel, nth: u64, event: Event) {
        let at = FIRST_EVENT + nth % self.room * EVENT_BYTES;
        self.write(kernel, at, event.number);
        self.write(kernel, at + 8, event.result);
        // Not seen before the words of the event: words of frames are stored with `Release`.
        self.write(kernel, TAIL, nth + 1);
    }

    fn place(&self, offset: u64) -> Option<(Pfn, usize)> {
        let page = usize::try_from(offset / PAGE_SIZE).ok()?;
        let word = usize::try_from(offset % PAGE_SIZE / 8).ok()?;
        Some((*self.frames.get(page)?, word))
    }

    fn read(&self, kernel: &Kernel, offset: u64) -> u64 {
        self.place(offset)
            .map_or(0, |(pfn, word)| kernel.frames.read(pfn, word))
    }

    fn write(&self, kernel: &Kernel, offset: u64, value: u64) {
        if let Some((pfn, word)) = self.place(offset) {
            kernel.frames.write(pfn, word, value);
        }
    }
}

/// Where the pages of a ring are, all of which are there. Nobody but the caller knows them yet, but who empties a block may have locked one to see
/// whether it moves: that is [`Error::Again`].
fn frames_of(kernel: &'static Kernel, file: &TmpFile, len: u64) -> Result<Vec<Pfn>, Error> {
    let frame_of = |index| match kernel.mm().lock_page(this_cpu(), file.mapping(), index) {
        Ok(PageLookup::Locked(page)) => Some(page.pfn()),
        _ => None,
    };
    let nr_pages = u32::try_from(len / PAGE_SIZE).map_err(|_| Error::Invalid)?;
    let frames: Option<Vec<Pfn>> = (0..nr_pages).map(frame_of).collect();
    frames.ok_or(Error::Again)
}

/// Has all of a ring there, and mapped to be written to, before anything uses it.
async fn fill(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (address, len): (u64, u64),
) -> Result<(), Error> {
    for page in 0..len / PAGE_SIZE {
        let at = address + page * PAGE_SIZE;
        let filled = fault::copy(kernel, program, |mm| {
            mm.write_user(this_cpu(), space, at, &[0; 8])
        });
        filled.await.map_err(copy_error)?;
    }
    Ok(())
}
