//! Giving memory back: by count when objects are freed (see `free_path`), by time, and when memory is short.

use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::Cpu;

use super::SlabAllocator;
use super::cache::Cache;
use super::free_path::Returning;
use super::object::ObjAddr;
use super::source::SlabSource;
use crate::frames::Frames;
use crate::reclaim::Shrinker;

impl<F: Frames + Sync, P: SlabSource + Sync> Shrinker for SlabAllocator<F, P> {
    fn name(&self) -> &'static str {
        "slab"
    }

    fn freeable_pages(&self) -> u64 {
        self.shrinkable_pages()
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        self.shrink_all(cpu, nr_pages)
    }
}

/// What a pass over all caches gave back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reaped {
    /// Objects that CPUs had at hand and that went back to their slabs.
    pub objects: u64,
    /// Frames that went back to the page allocator.
    pub pages: u64,
}

/// Objects at hand of a CPU that is not using the cache: a fifth of the limit goes at a time, as in Linux.
const LOCAL_SHARE: u32 = 5;
/// So do free slabs.
const SLAB_SHARE: u64 = 5;

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Gives back some of what was not used since the last call: a fifth of what idle CPUs have at hand, a fifth of
    /// the free slabs that each cache may keep. To be called every two seconds or so, by one CPU for all.
    pub fn reap(&self, cpu: &Cpu) -> Reaped {
        let mut reaped = Reaped::default();
        self.for_each_cache(|cache| {
            let mut returning = Returning::new(self, cache);
            for (_, local) in cache.local.iter() {
                if !local.touched.swap(false, Relaxed) {
                    let share = cache.limit.load(Relaxed).div_ceil(LOCAL_SHARE);
                    reaped.objects += self.trim(cache, local, share, &mut returning);
                }
            }
            let per_share = SLAB_SHARE * u64::from(cache.layout.nr_objects);
            let share = cache.free_limit().div_ceil(per_share);
            for node in 0..cache.nodes.len() {
                returning.doom_free(node, |lists| match core::mem::take(&mut lists.free_touched) {
                    true => 0,
                    false => share,
                });
            }
            reaped.pages += self.finish(cpu, cache, returning);
        });
        reaped
    }

    /// Gives back everything of a cache that is free: what CPUs have at hand, and free slabs. Returns the frames given
    /// back.
    pub fn shrink(&self, cpu: &Cpu, cache: &Cache) -> u64 {
        let mut returning = Returning::new(self, cache);
        for (_, local) in cache.local.iter() {
            self.trim(cache, local, u32::MAX, &mut returning);
        }
        for node in 0..cache.nodes.len() {
            returning.doom_free(node, |_| u64::MAX);
        }
        self.finish(cpu, cache, returning)
    }

    /// Gives back what is free in all caches until that is `nr_pages` frames; returns how many it is. For reclaim.
    pub fn shrink_all(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        let mut pages = 0;
        self.for_each_dependent_first(|cache| {
            if pages < nr_pages {
                pages += self.shrink(cpu, cache);
            }
        });
        pages
    }

    /// Frames that [`shrink_all`](Self::shrink_all) would give back at least.
    pub fn shrinkable_pages(&self) -> u64 {
        let mut pages = 0;
        self.for_each_cache(|cache| {
            let free = super::lists::Fullness::Free;
            let slabs: u64 = cache
                .nodes
                .iter()
                .map(|lists| u64::from(lists.lock().nr_slabs(free)))
                .sum();
            pages += slabs * u64::from(cache.layout.order.nr_pages());
        });
        pages
    }

    /// Takes up to `nr_objects` from what a CPU has at hand, whichever CPU that is; returns how many it got.
    fn trim(
        &self,
        cache: &Cache,
        local: &super::cache::LocalCache,
        nr_objects: u32,
        returning: &mut Returning<'_, F, P>,
    ) -> u64 {
        debug_assert!(cache.local.iter().any(|(_, known)| core::ptr::eq(known, local)));
        let taken = Cell::new(0);
        local.objects.steal(
            |_| taken.get() < nr_objects,
            |object| {
                taken.set(taken.get() + 1);
                returning.put(ObjAddr::new(object));
            },
        );
        u64::from(taken.get())
    }

    fn finish(&self, cpu: &Cpu, cache: &Cache, returning: Returning<'_, F, P>) -> u64 {
        returning.finish(cpu) * u64::from(cache.layout.order.nr_pages())
    }
}
