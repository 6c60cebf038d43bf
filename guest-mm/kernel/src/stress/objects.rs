//! Rows that ask for objects: of a cache of their own, and of the general caches.

use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_mm::frames::Frames;
use guest_mm::pfn::PAGE_SIZE;
use guest_mm::slab::{Alignment, Cache, CacheSpec, KMALLOC_MAX, ObjAddr, SlabAllocator, SlabSource};
use guest_mm::{Gfp, Pfn, ZoneKind};
use guest_programs::pattern::{Random, mix};

/// Steps of a round, and what one of them does.
const STEPS: u32 = 16;
const OPERATIONS: u32 = 48;
/// Objects given back in one step at the end.
const OBJECTS_A_STEP: usize = 256;

/// Names of caches under stress; more than eight programs share them.
const NAMES: [&str; 8] = [
    "stress-0", "stress-1", "stress-2", "stress-3", "stress-4", "stress-5", "stress-6", "stress-7",
];
/// Bytes of an object: not a power of two, and more than a cache line.
const OBJECT_SIZE: u32 = 200;
/// Objects held from round to round: those of a few dozen slabs.
const OBJECTS: usize = 640;
/// What the constructor leaves in the first word, and who gives an object back has to leave there too.
const CONSTRUCTED: u64 = 0x636f_6e73_7472_7563;

/// An object that is held, filled with words that follow from its address and its stamp.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) at: ObjAddr,
    bytes: u64,
    stamp: u64,
}

impl Object {
    /// An object of that many bytes; `stamp` sets its contents apart from what was there before.
    pub(super) const fn new(at: ObjAddr, bytes: u64, stamp: u64) -> Self {
        Self { at, bytes, stamp }
    }

    /// Address and contents of the words from `first` on.
    fn words(self, first: u64) -> impl Iterator<Item = (u64, u64)> {
        let start = self.at.gpa();
        let place = mix(start ^ self.stamp.rotate_left(32));
        (first..self.bytes / 8).map(move |word| {
            (
                start + word * 8,
                place.wrapping_add(word.wrapping_mul(0x9e37_79b9)),
            )
        })
    }

    /// Fills the words from `first` on.
    pub(super) fn fill(self, frames: &impl Frames, first: u64) {
        for (gpa, word) in self.words(first) {
            if let Some((pfn, index)) = place(gpa) {
                frames.write(pfn, index, word);
            }
        }
    }

    /// Compares the words from `first` on: one check.
    pub(super) fn compare(self, frames: &impl Frames, first: u64, checks: &mut Checks) {
        let wrong = self
            .words(first)
            .find(|&(gpa, word)| read(frames, gpa) != Some(word));
        checks.that(wrong.is_none(), || {
            let (gpa, word) = wrong.unwrap_or_default();
            format!(
                "the object at {} has {:x?} at {gpa:#x}, not {word:#x}",
                self.at,
                read(frames, gpa)
            )
        });
    }
}

fn place(gpa: u64) -> Option<(Pfn, usize)> {
    let index = usize::try_from(gpa % PAGE_SIZE / 8).ok()?;
    Some((Pfn::containing(gpa)?, index))
}

fn read(frames: &impl Frames, gpa: u64) -> Option<u64> {
    place(gpa).map(|(pfn, index)| frames.read(pfn, index))
}

/// A cache with a constructor, whose objects are taken and given back in random order (row P9). Keeps its objects from
/// round to round, and destroys the cache at its end: that names every object that was lost.
pub struct Slab<'s, F, P> {
    slabs: &'s SlabAllocator<F, P>,
    name: &'static str,
    cache: Option<Arc<Cache>>,
    objects: Vec<Object>,
    random: Random,
    steps_left: u32,
    nr_taken: u64,
}

impl<'s, F: Frames, P: SlabSource> Slab<'s, F, P> {
    /// Nothing yet; `number` tells apart those that run at the same time.
    pub fn new(slabs: &'s SlabAllocator<F, P>, number: u32) -> Self {
        Self {
            slabs,
            name: NAMES[number as usize % NAMES.len()],
            cache: None,
            objects: Vec::new(),
            random: Random::new(0),
            steps_left: 0,
            nr_taken: 0,
        }
    }

    fn spec(&self) -> CacheSpec {
        CacheSpec {
            align: Alignment::CacheLine,
            constructor: Some(|frames, object| {
                if let Some((pfn, index)) = place(object.gpa()) {
                    frames.write(pfn, index, CONSTRUCTED);
                }
            }),
            ..CacheSpec::new(self.name, OBJECT_SIZE)
        }
    }

    fn take<G>(&mut self, bench: &Bench<'_, G>, cache: &Cache, checks: &mut Checks) {
        // Before it is taken: the list may have no room.
        if self.objects.len() >= OBJECTS || self.objects.try_reserve(1).is_err() {
            return;
        }
        let Ok(at) = self.slabs.alloc(bench.cpu, cache, Gfp::NONE) else {
            return;
        };
        checks.that(at.gpa().is_multiple_of(64), || {
            format!("the object at {at} is not aligned to 64")
        });
        let first = read(self.slabs.frames(), at.gpa());
        checks.that(first == Some(CONSTRUCTED), || {
            format!("the object at {at} was not constructed: {first:x?}")
        });
        self.nr_taken += 1;
        let object = Object::new(at, OBJECT_SIZE.into(), self.nr_taken);
        object.fill(self.slabs.frames(), 1);
        self.objects.push(object);
    }

    fn give<G>(&mut self, bench: &Bench<'_, G>, cache: &Cache, index: usize, checks: &mut Checks) {
        if index >= self.objects.len() {
            return;
        }
        let object = self.objects.swap_remove(index);
        object.compare(self.slabs.frames(), 1, checks);
        let freed = self.slabs.free(bench.cpu, cache, object.at);
        checks.that(freed.is_ok(), || {
            format!("the object at {} cannot be freed: {freed:?}", object.at)
        });
    }
}

impl<G: Frames, F: Frames + Sync, P: SlabSource + Sync> Row<G> for Slab<'_, F, P> {
    fn begin(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.steps_left = STEPS;
    }

    fn step(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        let cache = match &self.cache {
            Some(cache) => cache.clone(),
            None => match self.slabs.create(&self.spec()) {
                Ok(cache) => self.cache.insert(cache).clone(),
                Err(error) => {
                    checks.that(false, || format!("no cache: {error}"));
                    return Step::Done;
                }
            },
        };
        for _ in 0..OPERATIONS {
            if self.random.below(3) < 2 {
                self.take(bench, &cache, checks);
            } else {
                let index = self.random.below(self.objects.len() as u64);
                self.give(bench, &cache, usize::try_from(index).unwrap_or(0), checks);
            }
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            return Step::More;
        }
        let (info, held) = (cache.info(), self.objects.len() as u64);
        checks.that(info.active_objects == held && info.objects >= held, || {
            format!(
                "cache {} says {info:?}, and {held} objects are held",
                cache.name()
            )
        });
        // Every other round what is free goes back to the zones.
        if self.random.below(2) == 0 {
            self.slabs.shrink(bench.cpu, &cache);
        }
        Step::Done
    }

    fn end(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        let Some(cache) = self.cache.clone() else {
            return Step::Done;
        };
        for _ in 0..OBJECTS_A_STEP {
            self.give(bench, &cache, 0, checks);
        }
        if !self.objects.is_empty() {
            return Step::More;
        }
        self.cache = None;
        let destroyed = self.slabs.destroy(bench.cpu, &cache);
        checks.that(destroyed.is_ok(), || format!("{destroyed:?}"));
        Step::Done
    }
}

/// Objects of the general caches, of 1 byte to 128 KiB, ordinary and for DMA (row P10). Keeps what it has from round to
/// round.
pub struct Kmalloc<'s, F, P> {
    slabs: &'s SlabAllocator<F, P>,
    objects: Vec<Object>,
    bytes: u64,
    random: Random,
    steps_left: u32,
    nr_taken: u64,
}

/// Most bytes held.
const MAX_BYTES: u64 = 4 << 20;

impl<'s, F: Frames, P: SlabSource> Kmalloc<'s, F, P> {
    /// Nothing yet.
    pub fn new(slabs: &'s SlabAllocator<F, P>) -> Self {
        Self {
            slabs,
            objects: Vec::new(),
            bytes: 0,
            random: Random::new(0),
            steps_left: 0,
            nr_taken: 0,
        }
    }

    fn take<G>(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) {
        // Every size from 32 bytes to 128 KiB is as likely as twice as much.
        let scale = 1_u64 << self.random.below(18);
        let bytes = (scale + self.random.below(scale)).min(KMALLOC_MAX as u64);
        if self.bytes + bytes > MAX_BYTES || self.objects.try_reserve(1).is_err() {
            return;
        }
        let gfp = if self.random.below(8) == 0 {
            Gfp::DMA
        } else {
            Gfp::NONE
        };
        let size = usize::try_from(bytes).unwrap_or(KMALLOC_MAX);
        let Ok(at) = self.slabs.kmalloc(bench.cpu, size, gfp) else {
            return;
        };
        // As `kmalloc` promises.
        let align = match bytes {
            ..=32 | 65..=96 => 32,
            257.. => bytes.next_power_of_two().min(4096),
            _ => 64,
        };
        checks.that(at.gpa().is_multiple_of(align), || {
            format!("{bytes} bytes at {at} are not aligned to {align}")
        });
        let room = self.slabs.ksize(at);
        checks.that(room.is_some_and(|room| u64::from(room) >= bytes), || {
            format!("room for {room:?} at {at}, where {bytes} bytes were asked for")
        });
        let zone = Pfn::containing(at.gpa()).and_then(|pfn| bench.phys.zone_of(pfn));
        let is_near = zone.is_some_and(|zone| gfp != Gfp::DMA || zone.kind() == ZoneKind::Dma);
        checks.that(is_near, || format!("{bytes} bytes for DMA at {at}"));
        self.nr_taken += 1;
        self.bytes += bytes;
        let object = Object::new(at, bytes, self.nr_taken);
        object.fill(self.slabs.frames(), 0);
        self.objects.push(object);
    }

    fn give<G>(&mut self, bench: &Bench<'_, G>, index: usize, checks: &mut Checks) {
        if index >= self.objects.len() {
            return;
        }
        let object = self.objects.swap_remove(index);
        self.bytes -= object.bytes;
        object.compare(self.slabs.frames(), 0, checks);
        let freed = self.slabs.kfree(bench.cpu, object.at);
        checks.that(freed.is_ok(), || {
            format!("the object at {} cannot be freed: {freed:?}", object.at)
        });
    }
}

impl<G: Frames, F: Frames + Sync, P: SlabSource + Sync> Row<G> for Kmalloc<'_, F, P> {
    fn begin(&mut self, seed: u64) {
        self.random = Random::new(seed);
        self.steps_left = STEPS;
    }

    fn step(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        for _ in 0..OPERATIONS {
            if self.random.below(5) < 3 {
                self.take(bench, checks);
            } else {
                let index = self.random.below(self.objects.len() as u64);
                self.give(bench, usize::try_from(index).unwrap_or(0), checks);
            }
        }
        self.steps_left = self.steps_left.saturating_sub(1);
        if self.steps_left > 0 {
            Step::More
        } else {
            Step::Done
        }
    }

    fn end(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        for _ in 0..OBJECTS_A_STEP {
            self.give(bench, 0, checks);
        }
        if self.objects.is_empty() {
            Step::Done
        } else {
            Step::More
        }
    }
}
