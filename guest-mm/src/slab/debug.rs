//! Debug mode: red zones around objects, poison in free ones, and who took and freed each last.
//!
//! ```text
//! | left red zone | object | right red zone | last taken | last freed |
//! ```
//! Both zones hold one byte value while the object is taken and another while it is free; that tells a double free
//! from damage. Byte values are those of Linux (`include/linux/poison.h`).

use core::panic::Location;

use guest_sync::Cpu;

use super::SlabAllocator;
use super::cache::Cache;
use super::misuse::{Damage, DamageKind, Misuse, SHOWN};
use super::object::{self, ObjAddr, WORD};
use super::source::SlabSource;
use super::track::Track;
use crate::frames::Frames;

/// Red zones of a free object.
const RED_FREE: u8 = 0xbb;
/// Red zones of an object that is taken.
const RED_TAKEN: u8 = 0xcc;
/// A free object, but for its last byte.
const POISON_FREE: u8 = 0x6b;
/// The last byte of a free object.
const POISON_END: u8 = 0xa5;
/// An object just taken: whoever reads this reads what was never written.
const POISON_TAKEN: u8 = 0x5a;

/// Where things are around an object, in bytes from the start of its place in the slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DebugLayout {
    /// The object; the left red zone is everything in front of it.
    pub(crate) object: u32,
    /// Two words: last taken, last freed. The right red zone ends here.
    tracks: u32,
    /// The next object's place.
    pub(crate) stride: u32,
}

impl DebugLayout {
    pub(crate) fn new(object_size: u32, align: u32) -> Self {
        // At least a word in front and behind, whatever the alignment.
        let end = align + object_size.next_multiple_of(WORD) + WORD;
        let stride = (end + 2 * WORD).next_multiple_of(align);
        Self {
            object: align,
            tracks: stride - 2 * WORD,
            stride,
        }
    }
}

/// One object of a debugged cache.
struct Watched<'a, F> {
    frames: &'a F,
    cache: &'a Cache,
    object: ObjAddr,
    layout: DebugLayout,
    size: u32,
}

/// A part of an object's place, and the byte that fills it.
#[derive(Clone, Copy)]
struct Part {
    gpa: u64,
    /// At least 1.
    len: u32,
    byte: u8,
    /// The last byte has a value of its own.
    last: u8,
}

impl Part {
    const fn of(gpa: u64, len: u32, byte: u8) -> Self {
        Self {
            gpa,
            len,
            byte,
            last: byte,
        }
    }

    /// First and last byte that are not as they should be, as offsets.
    fn unlike(self, frames: &impl Frames) -> Option<(u32, u32)> {
        let end = self.len - 1;
        let body = object::unlike(frames, self.gpa, end, self.byte);
        let last = object::unlike(frames, self.gpa + u64::from(end), 1, self.last);
        match (body, last) {
            (Some((first, _)), Some(_)) => Some((first, end)),
            (None, Some(_)) => Some((end, end)),
            (body, None) => body,
        }
    }

    /// What should be at an offset.
    fn expected(self, offset: u32) -> u8 {
        if offset == self.len - 1 {
            self.last
        } else {
            self.byte
        }
    }
}

impl<F: Frames> Watched<'_, F> {
    fn place(&self) -> u64 {
        self.object.gpa() - u64::from(self.layout.object)
    }

    fn left(&self, byte: u8) -> Part {
        Part::of(self.place(), self.layout.object, byte)
    }

    fn right(&self, byte: u8) -> Part {
        let len = self.layout.tracks - self.layout.object - self.size;
        Part::of(self.object.gpa() + u64::from(self.size), len, byte)
    }

    fn body(&self, byte: u8) -> Part {
        Part::of(self.object.gpa(), self.size, byte)
    }

    /// What a free object holds.
    fn poison(&self) -> Part {
        Part {
            last: POISON_END,
            ..self.body(POISON_FREE)
        }
    }

    fn fill(&self, part: Part) {
        object::fill(self.frames, part.gpa, part.len - 1, part.byte);
        object::fill(self.frames, part.gpa + u64::from(part.len) - 1, 1, part.last);
    }

    fn make_free(&self) {
        self.fill(self.left(RED_FREE));
        self.fill(self.poison());
        self.fill(self.right(RED_FREE));
    }

    fn track(&self, which: u64) -> u64 {
        self.place() + u64::from(self.layout.tracks) + which * u64::from(WORD)
    }

    /// The damage to a part, if there is any.
    fn damage(&self, kind: DamageKind, part: Part, tracks: [Option<Track>; 2]) -> Option<Damage> {
        let (first, last) = part.unlike(self.frames)?;
        let (mut expected, mut found) = ([0; SHOWN], [0; SHOWN]);
        for (offset, byte) in (first..).zip(&mut expected) {
            *byte = part.expected(offset);
        }
        let nr_bytes = last - first + 1;
        let gpa = part.gpa + u64::from(first);
        object::read(self.frames, gpa, &mut found[..SHOWN.min(nr_bytes as usize)]);
        Some(Damage {
            cache: self.cache.name,
            object: self.object,
            kind,
            offset: gpa.cast_signed() - self.object.gpa().cast_signed(),
            nr_bytes,
            expected,
            found,
            taken: tracks[0],
            freed: tracks[1],
        })
    }
}

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    fn watched<'a>(&'a self, cache: &'a Cache, object: ObjAddr) -> Option<Watched<'a, F>> {
        Some(Watched {
            frames: &self.frames,
            cache,
            object,
            layout: cache.layout.debug?,
            size: cache.layout.object_size,
        })
    }

    fn tracks(&self, object: &Watched<'_, F>) -> [Option<Track>; 2] {
        [0, 1].map(|which| {
            let word = object::read_word(&self.frames, object.track(which));
            self.files.decode(word)
        })
    }

    /// Reports every damage among `parts`; returns the first.
    fn report(&self, object: &Watched<'_, F>, parts: &[(DamageKind, Part)]) -> Option<Misuse> {
        let tracks = self.tracks(object);
        let mut first = None;
        for &(kind, part) in parts {
            if let Some(damage) = object.damage(kind, part, tracks) {
                let misuse = self.journal.write(Misuse::Damaged(damage));
                first = first.or(Some(misuse));
            }
        }
        first
    }

    /// An object of a new slab becomes a free one.
    pub(super) fn debug_new(&self, cache: &Cache, object: ObjAddr) {
        if let Some(object) = self.watched(cache, object) {
            object.make_free();
            object::write_word(&self.frames, object.track(0), 0);
            object::write_word(&self.frames, object.track(1), 0);
        }
    }

    /// Reports whatever was written to a free object.
    pub(super) fn debug_check_free(&self, cache: &Cache, object: ObjAddr) {
        use DamageKind::UseAfterFree;
        if let Some(object) = self.watched(cache, object) {
            let parts = [
                (UseAfterFree, object.left(RED_FREE)),
                (UseAfterFree, object.poison()),
                (UseAfterFree, object.right(RED_FREE)),
            ];
            self.report(&object, &parts);
        }
    }

    /// A free object is taken: reports what was written to it meanwhile, and makes it whole.
    pub(super) fn debug_take(&self, cpu: &Cpu, cache: &Cache, object: ObjAddr, place: &Location<'static>) {
        self.debug_check_free(cache, object);
        if let Some(object) = self.watched(cache, object) {
            object.fill(object.left(RED_TAKEN));
            object.fill(object.body(POISON_TAKEN));
            object.fill(object.right(RED_TAKEN));
            object::write_word(&self.frames, object.track(0), self.files.encode(cpu, place));
            if let Some(constructor) = cache.constructor {
                constructor(&self.frames, object.object);
            }
        }
    }

    /// An object is freed, which is known to be one of this cache: reports what was written around it, and poisons
    /// it.
    ///
    /// # Errors
    /// [`Misuse::DoubleFree`], and nothing was done.
    pub(super) fn debug_free(
        &self,
        cpu: &Cpu,
        cache: &Cache,
        object: ObjAddr,
        place: &Location<'static>,
    ) -> Result<Option<Misuse>, Misuse> {
        let Some(object) = self.watched(cache, object) else {
            return Ok(None);
        };
        if object.left(RED_FREE).unlike(&self.frames).is_none() {
            return Err(self.journal.write(Misuse::DoubleFree {
                cache: cache.name,
                object: object.object,
                freed: self.tracks(&object)[1],
            }));
        }
        let parts = [
            (DamageKind::Underrun, object.left(RED_TAKEN)),
            (DamageKind::Overrun, object.right(RED_TAKEN)),
        ];
        let damage = self.report(&object, &parts);
        object.make_free();
        object::write_word(&self.frames, object.track(1), self.files.encode(cpu, place));
        Ok(damage)
    }
}
