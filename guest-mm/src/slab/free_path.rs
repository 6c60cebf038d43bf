//! Freeing objects: to what the CPU has at hand, from there to slabs, and slabs to where they came from.

use core::panic::Location;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::{Cpu, SpinGuard};

use super::SlabAllocator;
use super::alloc_path::Placed;
use super::cache::Cache;
use super::head::{Fill, TAKEN, head};
use super::lists::{Doomed, Fullness, NodeLists};
use super::misuse::Misuse;
use super::object::ObjAddr;
use super::source::SlabSource;
use crate::frames::Frames;
use crate::pfn::Pfn;

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Frees an object of the cache. It is kept by this CPU for its next request, wherever it was taken.
    ///
    /// # Errors
    /// What is wrong with the object; then nothing was done, except for [`Misuse::Damaged`]. Of a cache that is not
    /// debugged most of that is noticed only when the object gets back to its slab: then it is in
    /// [`next_misuse`](Self::next_misuse) alone, and the object stays out of use.
    #[inline]
    #[track_caller]
    pub fn free(&self, cpu: &Cpu, cache: &Cache, object: ObjAddr) -> Result<(), Misuse> {
        if !cache.is_debugged() {
            let own = cache.own(cpu);
            if own.len() < cache.limit.load(Relaxed) && own.push(object.gpa()).is_ok() {
                return Ok(());
            }
        }
        self.free_slow(cpu, cache, object, Location::caller())
    }

    #[cold]
    pub(super) fn free_slow(
        &self,
        cpu: &Cpu,
        cache: &Cache,
        object: ObjAddr,
        place: &Location<'static>,
    ) -> Result<(), Misuse> {
        let mut damage = None;
        if cache.is_debugged() {
            self.locate(cache, object)
                .map_err(|misuse| self.journal.write(misuse))?;
            damage = self.debug_free(cpu, cache, object, place)?;
        }
        let own = cache.own(cpu);
        if own.len() >= cache.limit.load(Relaxed) {
            self.give_back(cpu, cache, cache.batch.load(Relaxed));
        }
        if own.push(object.gpa()).is_err() {
            // No room: the limit was raised and lowered again meanwhile.
            let mut returning = Returning::new(self, cache);
            returning.put(object);
            returning.finish(cpu);
        }
        damage.map_or(Ok(()), Err)
    }

    /// Gives the objects that the CPU has had at hand for longest back to their slabs.
    pub(super) fn give_back(&self, cpu: &Cpu, cache: &Cache, nr_objects: u32) {
        let local = cache.local.this(cpu);
        local.touched.store(true, Relaxed);
        let own = local.map(|local| &local.objects);
        let mut returning = Returning::new(self, cache);
        for _ in 0..nr_objects {
            let Some(object) = own.pop_cold() else {
                break;
            };
            returning.put(ObjAddr::new(object));
        }
        returning.finish(cpu);
    }

    /// The slab that an object lies in, and its number.
    ///
    /// # Errors
    /// When it is not an object of this cache.
    pub(super) fn locate(&self, cache: &Cache, object: ObjAddr) -> Result<(Placed, u16), Misuse> {
        let foreign = Misuse::Foreign {
            cache: cache.name,
            object,
        };
        let slab = object
            .pfn()
            .and_then(|pfn| self.source.slab_of(pfn))
            .ok_or(foreign)?;
        let owner = head(&self.source, slab).cache();
        if owner != cache.id {
            return Err(Misuse::WrongCache {
                cache: cache.name,
                object,
                owner: self.with_cache(owner, Cache::name).unwrap_or("?"),
            });
        }
        let place = self.placed(cache, slab);
        let stride = u64::from(cache.layout.stride);
        let offset = object.gpa().wrapping_sub(place.first);
        match u16::try_from(offset / stride) {
            Ok(number) if number < cache.layout.nr_objects && offset.is_multiple_of(stride) => {
                Ok((place, number))
            }
            _ => Err(Misuse::Misaligned {
                cache: cache.name,
                object,
                first: ObjAddr::new(place.first),
            }),
        }
    }

    /// Gives a slab without taken objects, which is on no list, back to where it came from.
    pub(super) fn destroy_slab(&self, cpu: &Cpu, cache: &Cache, slab: Pfn) {
        if cache.is_debugged() {
            let place = self.placed(cache, slab);
            for number in 0..cache.layout.nr_objects {
                self.debug_check_free(cache, place.object(number));
            }
        }
        let descriptors = head(&self.source, slab).descriptors();
        self.source.put(cpu, slab, cache.layout.order);
        if let Some(descriptors) = descriptors {
            // A misuse of the descriptors is in the journal.
            let _ = self.kfree(cpu, descriptors);
        }
    }
}

/// Objects on their way back to slabs: keeps the lock of the node as long as they come from there.
pub(super) struct Returning<'a, F, P> {
    slabs: &'a SlabAllocator<F, P>,
    cache: &'a Cache,
    lists: Option<(usize, SpinGuard<'a, NodeLists>)>,
    doomed: Doomed,
    /// Slabs given back.
    pub(super) nr_doomed: u64,
}

impl<'a, F: Frames, P: SlabSource> Returning<'a, F, P> {
    pub(super) fn new(slabs: &'a SlabAllocator<F, P>, cache: &'a Cache) -> Self {
        Self {
            slabs,
            cache,
            lists: None,
            doomed: Doomed::default(),
            nr_doomed: 0,
        }
    }

    /// Returns an object to its slab. One that does not belong there is written down and stays out of use.
    pub(super) fn put(&mut self, object: ObjAddr) {
        let (place, number) = match self.slabs.locate(self.cache, object) {
            Ok(found) => found,
            Err(misuse) => {
                self.slabs.journal.write(misuse);
                return;
            }
        };
        let node = self.slabs.source.node_of(place.slab);
        let mut lists = match self.lists.take() {
            Some((held, lists)) if held == node => lists,
            other => {
                drop(other);
                self.cache.nodes[node].lock()
            }
        };
        self.put_on_slab(&mut lists, &place, number);
        self.lists = Some((node, lists));
    }

    fn put_on_slab(&mut self, lists: &mut NodeLists, place: &Placed, number: u16) {
        let (slabs, cache) = (self.slabs, self.cache);
        if slabs.descriptor(place, number) != TAKEN {
            slabs.journal.write(Misuse::DoubleFree {
                cache: cache.name,
                object: place.object(number),
                freed: None,
            });
            return;
        }
        let fields = head(&slabs.source, place.slab);
        let Fill { taken, first_free } = fields.fill();
        let before = Fullness::of(fields.fill(), cache.layout.nr_objects);
        slabs.set_descriptor(place, number, first_free);
        let fill = Fill {
            taken: taken - 1,
            first_free: number,
        };
        fields.set_fill(fill);
        if !fields.is_listed() {
            // It is to leave: nobody gets an object of it.
            return;
        }
        lists.free_objects += 1;
        let after = Fullness::of(fill, cache.layout.nr_objects);
        if after == Fullness::Free && lists.free_objects > cache.free_limit() {
            lists.remove(&slabs.source, before, place.slab);
            self.doom(lists, place.slab);
        } else {
            slabs.relist(lists, place.slab, before, after);
        }
    }

    /// A free slab that is on no list will be given back.
    fn doom(&mut self, lists: &mut NodeLists, slab: Pfn) {
        lists.free_objects -= u64::from(self.cache.layout.nr_objects);
        self.doomed.add(&self.slabs.source, slab);
        self.nr_doomed += 1;
    }

    /// Takes free slabs of a node off their list, as many as `wanted` says or there are.
    pub(super) fn doom_free(&mut self, node: usize, wanted: impl FnOnce(&mut NodeLists) -> u64) {
        self.lists = None;
        let cache = self.cache;
        let mut lists = cache.nodes[node].lock();
        for _ in 0..wanted(&mut lists) {
            let Some(slab) = lists.first(Fullness::Free) else {
                break;
            };
            lists.remove(&self.slabs.source, Fullness::Free, slab);
            self.doom(&mut lists, slab);
        }
    }

    /// Lets go of the lock, and gives back the slabs that became superfluous; returns how many.
    pub(super) fn finish(mut self, cpu: &Cpu) -> u64 {
        self.lists = None;
        while let Some(slab) = self.doomed.pop(&self.slabs.source) {
            self.slabs.destroy_slab(cpu, self.cache, slab);
        }
        self.nr_doomed
    }
}
