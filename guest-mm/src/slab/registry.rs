//! Making, finding and destroying caches.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::Cpu;

use super::cache::{Cache, CacheId, CacheSpec};
use super::head::{TAKEN, head};
use super::lists::Fullness;
use super::object::ObjAddr;
use super::source::SlabSource;
use super::{MAX_CACHES, SlabAllocator};
use crate::frames::Frames;

/// Why a cache cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// The size is 0 or above 128 KiB, or the alignment is not a power of two up to 4096.
    BadLayout,
    /// The name is empty, or has a space in it.
    BadName,
    /// There are 128 caches already.
    TooMany,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLayout => write!(
                f,
                "objects of 1 to 131072 bytes, aligned to a power of two up to 4096"
            ),
            Self::BadName => write!(f, "a cache's name is one word"),
            Self::TooMany => write!(f, "there are {MAX_CACHES} caches already"),
        }
    }
}

impl core::error::Error for CreateError {}

/// Objects of a cache that were not freed when it was to be destroyed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leak {
    /// Name of the cache.
    pub cache: &'static str,
    /// How many.
    pub nr_objects: u64,
    /// Which: the first 64.
    pub objects: Vec<ObjAddr>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cache {}: {} objects still in use:",
            self.cache, self.nr_objects
        )?;
        self.objects
            .iter()
            .try_for_each(|object| write!(f, " {object}"))?;
        let more = self.nr_objects > self.objects.len() as u64;
        f.write_str(if more { " ..." } else { "" })
    }
}

impl core::error::Error for Leak {}

/// Leaked objects that are named.
const NAMED: usize = 64;

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// Makes a cache. It takes no frames before it is used.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(&self, spec: &CacheSpec) -> Result<Arc<Cache>, CreateError> {
        if spec.name.is_empty() || spec.name.contains(char::is_whitespace) {
            return Err(CreateError::BadName);
        }
        // The cache is made before the lock is taken: that needs the heap, which may need this allocator.
        for (id, index) in (0..).skip(self.general.len()).zip(0..MAX_CACHES) {
            if self.table.lock()[index].is_some() {
                continue;
            }
            let id = CacheId(id);
            let cache = Cache::new(id, spec, self.source.nr_cpus(), self.source.nr_nodes());
            let cache = Arc::new(cache.ok_or(CreateError::BadLayout)?);
            let mut table = self.table.lock();
            if table[index].is_none() {
                table[index] = Some(cache.clone());
                return Ok(cache);
            }
        }
        Err(CreateError::TooMany)
    }

    /// Destroys a cache: its objects at hand go back to their slabs and its slabs to where they came from. No CPU may
    /// use it meanwhile.
    ///
    /// # Errors
    /// The objects that are still in use; the cache lives on.
    pub fn destroy(&self, cpu: &Cpu, cache: &Arc<Cache>) -> Result<(), Leak> {
        cache.closed.store(true, Relaxed);
        self.shrink(cpu, cache);
        if let Some(leak) = self.leak(cache) {
            cache.closed.store(false, Relaxed);
            return Err(leak);
        }
        let index = usize::from(cache.id.0).wrapping_sub(self.general.len());
        let gone = self.table.lock().get_mut(index).and_then(Option::take);
        // Dropped with no lock held.
        drop(gone);
        Ok(())
    }

    /// Objects that are taken from slabs, once all that CPUs have at hand are back.
    fn leak(&self, cache: &Cache) -> Option<Leak> {
        let mut objects = Vec::with_capacity(NAMED);
        let mut nr_objects = 0;
        for lists in &cache.nodes {
            let lists = lists.lock();
            for list in [Fullness::Full, Fullness::Partial] {
                let mut next = lists.first(list);
                while let Some(slab) = next {
                    let place = self.placed(cache, slab);
                    for number in 0..cache.layout.nr_objects {
                        if self.descriptor(&place, number) == TAKEN {
                            nr_objects += 1;
                            if objects.len() < NAMED {
                                objects.push(place.object(number));
                            }
                        }
                    }
                    next = head(&self.source, slab).next();
                }
            }
        }
        (nr_objects > 0).then_some(Leak {
            cache: cache.name,
            nr_objects,
            objects,
        })
    }

    /// Calls `each` with every cache, the general ones first.
    pub fn for_each_cache(&self, mut each: impl FnMut(&Cache)) {
        self.general.iter().for_each(&mut each);
        for index in 0..MAX_CACHES {
            if let Some(cache) = self.at(index) {
                each(&cache);
            }
        }
    }

    /// Calls `each` with every cache, in such an order that the cache with another one's object descriptors comes after
    /// that.
    pub(super) fn for_each_dependent_first(&self, mut each: impl FnMut(&Cache)) {
        for index in (0..MAX_CACHES).rev() {
            if let Some(cache) = self.at(index) {
                each(&cache);
            }
        }
        self.general.iter().rev().for_each(each);
    }

    fn at(&self, index: usize) -> Option<Arc<Cache>> {
        self.table.lock().get(index)?.clone()
    }

    /// Calls `with` with the cache of that number, if there is one.
    #[inline]
    pub(super) fn with_cache<R>(&self, id: CacheId, with: impl FnOnce(&Cache) -> R) -> Option<R> {
        let number = usize::from(id.0);
        match self.general.get(number) {
            Some(cache) => Some(with(cache)),
            None => self.at(number - self.general.len()).map(|cache| with(&cache)),
        }
    }
}
