//! Taking objects: from what the CPU has at hand, from slabs, from new slabs.

use core::panic::Location;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::Cpu;

use super::cache::{Cache, Objects};
use super::head::{END, TAKEN, head};
use super::lists::{Fullness, NodeLists};
use super::object::{self, ObjAddr};
use super::source::SlabSource;
use super::{NoObject, SlabAllocator};
use crate::frames::Frames;
use crate::gfp::Gfp;
use crate::pfn::Pfn;

/// A slab and where things are on it.
pub(super) struct Placed {
    /// Its first frame.
    pub(super) slab: Pfn,
    /// The first object descriptor.
    descriptors: u64,
    /// The first object.
    pub(super) first: u64,
    stride: u32,
}

impl Placed {
    /// Address of an object by its number.
    pub(super) fn object(&self, number: u16) -> ObjAddr {
        ObjAddr::new(self.first + u64::from(number) * u64::from(self.stride))
    }

    /// Address of an object descriptor.
    pub(super) fn descriptor(&self, number: u16) -> u64 {
        self.descriptors + u64::from(number) * 2
    }
}

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Takes an object. In a cache without constructor its contents are unknown.
    ///
    /// # Errors
    /// When no object is free and there are no frames for another slab.
    #[inline]
    #[track_caller]
    pub fn alloc(&self, cpu: &Cpu, cache: &Cache, gfp: Gfp) -> Result<ObjAddr, NoObject> {
        if !cache.is_debugged()
            && let Some(object) = cache.own(cpu).pop()
        {
            return Ok(ObjAddr::new(object));
        }
        self.alloc_slow(cpu, cache, gfp, Location::caller())
    }

    #[cold]
    fn alloc_slow(
        &self,
        cpu: &Cpu,
        cache: &Cache,
        gfp: Gfp,
        place: &Location<'static>,
    ) -> Result<ObjAddr, NoObject> {
        let at_hand = cache.own(cpu).pop().map(ObjAddr::new);
        let object = match at_hand {
            Some(object) => object,
            None => self.refill(cpu, cache, gfp)?,
        };
        if cache.is_debugged() {
            self.debug_take(cpu, cache, object, place);
        }
        Ok(object)
    }

    /// Takes a batch of objects to hand and returns one of them: from the CPU's own node, then from a new slab there,
    /// then from other nodes, at last from a new slab anywhere.
    fn refill(&self, cpu: &Cpu, cache: &Cache, gfp: Gfp) -> Result<ObjAddr, NoObject> {
        cache.local.this(cpu).touched.store(true, Relaxed);
        let own = self.source.node_of_cpu(cpu);
        let take = |node| self.take_batch(cpu, cache, node).map(ObjAddr::new);
        // Others may take what was put at hand or on a list; each time that happens somebody got an object.
        loop {
            if let Some(object) = take(own) {
                return Ok(object);
            }
            if cache.nodes.len() > 1 {
                if let Some(node) = self.grow(cpu, cache, gfp.with(Gfp::THIS_NODE)) {
                    if let Some(object) = take(node) {
                        return Ok(object);
                    }
                    continue;
                }
                if let Some(object) = (0..cache.nodes.len()).find_map(take) {
                    return Ok(object);
                }
            }
            let node = self.grow(cpu, cache, gfp).ok_or(NoObject { cache: cache.name })?;
            if let Some(object) = take(node) {
                return Ok(object);
            }
        }
    }

    /// Takes up to a batch of objects of a node to hand, and returns the last.
    fn take_batch(&self, cpu: &Cpu, cache: &Cache, node: usize) -> Option<u64> {
        let own = cache.own(cpu);
        let mut wanted = cache.batch.load(Relaxed);
        let mut lists = cache.nodes[node].lock();
        while wanted > 0
            && let Some(slab) = lists.first(Fullness::Partial).or(lists.first(Fullness::Free))
        {
            wanted -= self.take_from(cache, &mut lists, slab, wanted, |object| {
                own.push(object.gpa())
                    .expect("nothing was at hand, and a batch is less than there is room for");
            });
        }
        drop(lists);
        own.pop()
    }

    /// Takes up to `wanted` objects off a slab that has one, and returns how many it took.
    fn take_from(
        &self,
        cache: &Cache,
        lists: &mut NodeLists,
        slab: Pfn,
        wanted: u32,
        mut take: impl FnMut(ObjAddr),
    ) -> u32 {
        let (place, fields) = (self.placed(cache, slab), head(&self.source, slab));
        let nr_objects = cache.layout.nr_objects;
        let mut fill = fields.fill();
        let before = Fullness::of(fill, nr_objects);
        let mut taken = 0_u16;
        while u32::from(taken) < wanted && fill.first_free != END {
            let number = fill.first_free;
            assert!(
                number < nr_objects,
                "cache {}: the object descriptors of the slab at {slab} are damaged",
                cache.name
            );
            fill.first_free = self.descriptor(&place, number);
            self.set_descriptor(&place, number, TAKEN);
            take(place.object(number));
            taken += 1;
        }
        fill.taken += taken;
        fields.set_fill(fill);
        lists.free_objects -= u64::from(taken);
        lists.free_touched |= before == Fullness::Free;
        self.relist(lists, slab, before, Fullness::of(fill, nr_objects));
        u32::from(taken)
    }

    /// Puts a slab on the list of its fill.
    pub(super) fn relist(&self, lists: &mut NodeLists, slab: Pfn, before: Fullness, after: Fullness) {
        if before != after {
            lists.remove(&self.source, before, slab);
            lists.insert(&self.source, after, slab);
        }
    }

    /// Makes a slab and puts it on its node's list of free ones; returns the node. No lock is held meanwhile.
    fn grow(&self, cpu: &Cpu, cache: &Cache, gfp: Gfp) -> Option<usize> {
        if cache.closed.load(Relaxed) {
            return None;
        }
        let gfp = gfp.with(cache.gfp).without(Gfp::HIGHMEM.with(Gfp::MOVABLE));
        let layout = &cache.layout;
        let removable = match cache.objects {
            Objects::Fixed => None,
            Objects::Movable => self.source.take_removable(cpu, gfp, layout.order),
        };
        let slab = removable.or_else(|| self.source.take(cpu, gfp, layout.order))?;
        let descriptors = if layout.off_slab {
            let gfp = gfp.without(
                Gfp::DMA
                    .with(Gfp::DMA32)
                    .with(Gfp::RECLAIMABLE)
                    .with(Gfp::THIS_NODE),
            );
            let Ok(descriptors) = self.kmalloc(cpu, layout.descriptor_bytes() as usize, gfp) else {
                self.source.put(cpu, slab, layout.order);
                return None;
            };
            Some(descriptors)
        } else {
            None
        };
        let node = self.source.node_of(slab);
        let colour = cache.nodes[node].lock().take_colour(layout.nr_colours);
        head(&self.source, slab).describe(cache.id, colour, descriptors);
        self.furnish(cache, slab);
        let mut lists = cache.nodes[node].lock();
        lists.insert(&self.source, Fullness::Free, slab);
        lists.free_objects += u64::from(layout.nr_objects);
        Some(node)
    }

    /// Writes the object descriptors of a new slab, and brings its objects into their first state.
    fn furnish(&self, cache: &Cache, slab: Pfn) {
        let place = self.placed(cache, slab);
        let nr_objects = cache.layout.nr_objects;
        // Four descriptors to a word: each names the object after its own.
        for number in (0..nr_objects).step_by(4) {
            let next = |at: u16| {
                if number + at < nr_objects {
                    number + at
                } else {
                    END
                }
            };
            let word = [next(1), next(2), next(3), next(4)];
            let word = word
                .iter()
                .rev()
                .fold(0, |word, &next| word << 16 | u64::from(next));
            object::write_word(&self.frames, place.descriptor(number), word);
        }
        if !cache.is_debugged() && cache.constructor.is_none() {
            return;
        }
        for number in 0..nr_objects {
            if cache.is_debugged() {
                self.debug_new(cache, place.object(number));
            } else if let Some(constructor) = cache.constructor {
                constructor(&self.frames, place.object(number));
            }
        }
    }

    /// Where things are on a slab of that cache.
    pub(super) fn placed(&self, cache: &Cache, slab: Pfn) -> Placed {
        let (layout, fields) = (&cache.layout, head(&self.source, slab));
        let start = slab.gpa() + u64::from(fields.colour() * layout.colour_step);
        let in_place = layout.debug.map_or(0, |debug| debug.object);
        Placed {
            slab,
            descriptors: fields.descriptors().map_or(start, ObjAddr::gpa),
            first: start + u64::from(layout.first + in_place),
            stride: layout.stride,
        }
    }

    /// The object descriptor: number of the next free object, [`END`] or [`TAKEN`].
    pub(super) fn descriptor(&self, place: &Placed, number: u16) -> u16 {
        object::read_u16(&self.frames, place.descriptor(number))
    }

    pub(super) fn set_descriptor(&self, place: &Placed, number: u16, value: u16) {
        object::write_u16(&self.frames, place.descriptor(number), value);
    }
}
