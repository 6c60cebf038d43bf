//! Slabs whose memory is to leave: their objects go to other slabs, or are given up, and the slabs are given back (Linux' proposals of
//! movable slab objects: C. Lameter, "Slab defragmentation", 2007, T. Harding, "Slab Movable Objects", 2019).
//!
//! A slab is first taken off its list: nobody gets an object of it any more, and what is freed comes back to it. What CPUs have at hand of
//! it is taken from them. Then whoever knows the references to the objects of the cache moves those that are left ([`MoveObjects`]); of
//! caches that nobody can move objects of, slabs that have none in use go all the same.

use alloc::vec::Vec;

use guest_sync::Cpu;

use super::cache::Cache;
use super::free_path::Returning;
use super::head::{Fill, head};
use super::lists::Fullness;
use super::object::{self, ObjAddr};
use super::source::SlabSource;
use super::{NoObject, SlabAllocator};
use crate::frames::Frames;
use crate::gfp::Gfp;
use crate::migrate::{Refusal, RefusalReason};
use crate::page::KernelUse;
use crate::pfn::Pfn;
use crate::vmalloc::KernelMoved;

/// Whether an object lies in memory that is to leave.
pub type IsLeaving<'a> = &'a dyn Fn(ObjAddr) -> bool;

/// Who knows all references to the objects of a cache.
pub trait MoveObjects: Sync {
    /// The cache, once there is one.
    fn cache(&self) -> Option<&Cache>;

    /// Moves the objects that are leaving to where [`SlabAllocator::relocate`] says, and lets whatever leads to them lead there; or frees
    /// them, if they can be done without. One that somebody is using stays.
    ///
    /// # Errors
    /// When there is no memory for the next one.
    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject>;
}

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Empties those slabs that a batch of migration has refused, gives them back, and takes them out of the list. Their frames belong to
    /// blocks that nothing is allocated from any more.
    pub fn move_off(
        &self,
        cpu: &Cpu,
        movers: &[&dyn MoveObjects],
        refused: &mut Vec<Refusal>,
    ) -> KernelMoved {
        let is_slab = |refusal: &&Refusal| refusal.reason == RefusalReason::Unmovable(KernelUse::Slab);
        let mut wanted: Vec<Pfn> = Vec::new();
        wanted.extend(refused.iter().filter(is_slab).map(|refusal| refusal.pfn));
        let mut moved = KernelMoved::default();
        if wanted.is_empty() {
            return moved;
        }
        let mut gone = Vec::with_capacity(wanted.len());
        // A slab's descriptors may be objects of another one.
        self.for_each_dependent_first(|cache| {
            let of_cache = |mover: &&&dyn MoveObjects| mover.cache().is_some_and(|of| of.id == cache.id);
            let mover = movers.iter().find(of_cache).copied();
            moved.lacks_memory |= self.vacate(cpu, cache, mover, &wanted, &mut gone).is_err();
        });
        for slab in gone {
            if let Some(at) = refused.iter().position(|refusal| refusal.pfn == slab) {
                moved.pages += refused.swap_remove(at).order.nr_pages();
            }
        }
        moved
    }

    /// Moves an object that is in use to another slab, with its contents; returns where it is now. The old place goes back to its slab at
    /// once, not to hand.
    ///
    /// # Errors
    /// When there is no memory; nothing has changed then.
    #[track_caller]
    pub fn relocate(&self, cpu: &Cpu, cache: &Cache, from: ObjAddr) -> Result<ObjAddr, NoObject> {
        let to = self.alloc(cpu, cache, Gfp::KERNEL)?;
        object::copy(&self.frames, from.gpa(), to.gpa(), cache.layout.object_size);
        if cache.is_debugged() {
            // What is wrong with it is in the journal.
            let _ = self.debug_free(cpu, cache, from, core::panic::Location::caller());
        } else if let Some(constructor) = cache.constructor {
            constructor(&self.frames, from);
        }
        let mut returning = Returning::new(self, cache);
        returning.put(from);
        returning.finish(cpu);
        Ok(to)
    }

    /// Name of the cache that a slab belongs to.
    pub fn name_of(&self, slab: Pfn) -> Option<&'static str> {
        let slab = self.source.slab_of(slab)?;
        self.with_cache(head(&self.source, slab).cache(), Cache::name)
    }

    /// Empties those of the slabs that are the cache's, and adds the ones that were given back to `gone`.
    fn vacate(
        &self,
        cpu: &Cpu,
        cache: &Cache,
        mover: Option<&dyn MoveObjects>,
        wanted: &[Pfn],
        gone: &mut Vec<Pfn>,
    ) -> Result<(), NoObject> {
        let is_its = |slab: Pfn| {
            self.source.slab_of(slab) == Some(slab) && head(&self.source, slab).cache() == cache.id
        };
        let mut slabs: Vec<Pfn> = Vec::new();
        slabs.extend(wanted.iter().copied().filter(|&slab| is_its(slab)));
        slabs.retain(|&slab| self.take_out(cache, slab));
        if slabs.is_empty() {
            return Ok(());
        }
        slabs.sort_unstable();
        let is_leaving = |object: ObjAddr| {
            let slab = object.pfn().and_then(|pfn| self.source.slab_of(pfn));
            slab.is_some_and(|slab| slabs.binary_search(&slab).is_ok())
        };
        self.take_from_hands(cpu, cache, &is_leaving);
        let moved = mover.map_or(Ok(()), |mover| mover.move_objects(cpu, &is_leaving));
        // What was freed meanwhile is at hand again.
        self.take_from_hands(cpu, cache, &is_leaving);
        for slab in slabs {
            if self.put_in_unless_free(cache, slab) {
                continue;
            }
            self.destroy_slab(cpu, cache, slab);
            gone.push(slab);
        }
        moved
    }

    /// Takes a slab off its list. False if it is on none.
    fn take_out(&self, cache: &Cache, slab: Pfn) -> bool {
        let mut lists = cache.nodes[self.source.node_of(slab)].lock();
        if self.source.slab_of(slab) != Some(slab) {
            return false;
        }
        let fields = head(&self.source, slab);
        if fields.cache() != cache.id || !fields.is_listed() {
            return false;
        }
        let (fill, nr_objects) = (fields.fill(), cache.layout.nr_objects);
        lists.remove(&self.source, Fullness::of(fill, nr_objects), slab);
        lists.free_objects -= u64::from(nr_objects - fill.taken);
        true
    }

    /// Puts a slab that was taken out back on the list of its fill. False if it has no objects in use: it is the caller's then.
    fn put_in_unless_free(&self, cache: &Cache, slab: Pfn) -> bool {
        let mut lists = cache.nodes[self.source.node_of(slab)].lock();
        let fields = head(&self.source, slab);
        let (fill, nr_objects) = (fields.fill(), cache.layout.nr_objects);
        let Fill { taken, .. } = fill;
        if taken == 0 {
            return false;
        }
        lists.insert(&self.source, Fullness::of(fill, nr_objects), slab);
        lists.free_objects += u64::from(nr_objects - taken);
        true
    }

    /// Gives those objects that CPUs have at hand and that are leaving back to their slabs.
    fn take_from_hands(&self, cpu: &Cpu, cache: &Cache, is_leaving: IsLeaving<'_>) {
        let mut returning = Returning::new(self, cache);
        for (_, local) in cache.local.iter() {
            let wanted = |object| is_leaving(ObjAddr::new(object));
            local
                .objects
                .steal(wanted, |object| returning.put(ObjAddr::new(object)));
        }
        returning.finish(cpu);
    }
}
