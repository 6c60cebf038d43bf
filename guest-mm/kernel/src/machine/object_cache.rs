//! Caches of the manager's own for objects that there are many of: as a `Box`, but with a line of their own in
//! `slabinfo`, no rounding up to a general size, and no search for the size.

#![expect(unsafe_code, reason = "values live in memory of the slab allocator")]

use super::cpu::this_cpu;
use super::heap::{Slabs, slabs};
use super::quiet;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::{NonNull, drop_in_place, with_exposed_provenance_mut};
use guest_kernel::physical::to_usize;
use guest_mm::Gfp;
use guest_mm::fs::{Store, per_frame};
use guest_mm::slab::{Alignment, Cache, CacheSpec, Debugging, IsLeaving, NoObject, ObjAddr, Objects};
use guest_sync::{Cpu, SetOnce};

/// A cache for values of one type; made when the first is.
pub(crate) struct ObjectCache<T> {
    name: &'static str,
    cache: SetOnce<Arc<Cache>>,
    objects: Objects,
    of: PhantomData<fn() -> T>,
}

impl<T> ObjectCache<T> {
    /// A cache of that name, whose objects stay where they are.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self::of(name, Objects::Fixed)
    }

    /// A cache of that name, whose objects can be moved by who has their boxes.
    pub(crate) const fn movable(name: &'static str) -> Self {
        Self::of(name, Objects::Movable)
    }

    const fn of(name: &'static str, objects: Objects) -> Self {
        assert!(
            size_of::<T>() > 0 && size_of::<T>() <= 4096 && align_of::<T>() <= 64,
            "objects fit pages"
        );
        Self {
            name,
            cache: SetOnce::new(),
            objects,
            of: PhantomData,
        }
    }

    /// The cache itself, once there is one.
    pub(crate) fn slab_cache(&self) -> Option<&Cache> {
        self.cache.get().map(|cache| &**cache)
    }

    /// Moves a value into an object of the cache.
    pub(crate) fn store(&'static self, value: T) -> Result<CacheBox<T>, NoObject> {
        let slabs = slabs().ok_or(NoObject { cache: self.name })?;
        let cache = self.cache(slabs).ok_or(NoObject { cache: self.name })?;
        let _visit = quiet::visit(this_cpu());
        let object = slabs.alloc(this_cpu(), cache, Gfp::KERNEL)?;
        let place = with_exposed_provenance_mut::<T>(to_usize(object.gpa()));
        let value_at = NonNull::new(place).ok_or(NoObject { cache: self.name })?;
        // SAFETY: the object is large enough and aligned, by the cache's specification, mapped at its physical address,
        // and this call's alone.
        unsafe { value_at.write(value) };
        Ok(CacheBox {
            value: value_at,
            home: self,
        })
    }

    fn cache(&self, slabs: &Slabs) -> Option<&Arc<Cache>> {
        if self.cache.get().is_none() {
            let spec = CacheSpec {
                align: Alignment::CacheLine,
                debug: if slabs.is_debugged() {
                    Debugging::On
                } else {
                    Debugging::Off
                },
                objects: self.objects,
                ..CacheSpec::new(self.name, u32::try_from(size_of::<T>()).ok()?)
            };
            let cache = slabs.create(&spec).ok()?;
            // Another CPU was first: its cache stays, and this one, which is empty, goes.
            if let Err(cache) = self.cache.set(cache) {
                let _ = slabs.destroy(this_cpu(), &cache);
            }
        }
        // Between the two lines above and the end of another CPU's `set` there is nothing yet.
        loop {
            if let Some(cache) = self.cache.get() {
                return Some(cache);
            }
            guest_sync::atomic::relax();
        }
    }
}

impl<T: Send> Store<T> for &'static ObjectCache<T> {
    type Box = CacheBox<T>;

    fn store(&self, value: T) -> Option<CacheBox<T>> {
        ObjectCache::store(self, value).ok()
    }

    fn relocate(
        &self,
        cpu: &Cpu,
        object: &mut CacheBox<T>,
        is_leaving: IsLeaving<'_>,
    ) -> Result<(), NoObject> {
        let from = object.address();
        if !is_leaving(from) {
            return Ok(());
        }
        let none = NoObject { cache: self.name };
        let (slabs, cache) = (slabs().ok_or(none)?, self.slab_cache().ok_or(none)?);
        let _visit = quiet::visit(cpu);
        let to = slabs.relocate(cpu, cache, from)?;
        // The value is at both places, byte for byte, and only the new one is used from now on.
        object.value = NonNull::new(with_exposed_provenance_mut(to_usize(to.gpa()))).ok_or(none)?;
        Ok(())
    }

    fn per_frame(&self) -> u32 {
        per_frame::<T>()
    }

    fn frames(&self) -> u64 {
        let frames = |cache: &Arc<Cache>| cache.info().slabs * u64::from(cache.layout().order.nr_pages());
        self.cache.get().map_or(0, frames)
    }

    fn give_back(&self, cpu: &Cpu) {
        if let (Some(slabs), Some(cache)) = (slabs(), self.cache.get()) {
            let _visit = quiet::visit(cpu);
            slabs.shrink(cpu, cache);
        }
    }
}

/// A value in an object of a cache.
pub(crate) struct CacheBox<T: 'static> {
    value: NonNull<T>,
    home: &'static ObjectCache<T>,
}

// SAFETY: the box owns its value, as a `Box` does.
unsafe impl<T: Send> Send for CacheBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for CacheBox<T> {}

impl<T> CacheBox<T> {
    fn address(&self) -> ObjAddr {
        ObjAddr::new(self.value.as_ptr().expose_provenance() as u64)
    }
}

impl<T> Deref for CacheBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the object is the box's own.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for CacheBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the object is the box's own.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for CacheBox<T> {
    fn drop(&mut self) {
        let object = self.address();
        // SAFETY: the value is not used again.
        unsafe { drop_in_place(self.value.as_ptr()) };
        if let (Some(slabs), Some(cache)) = (slabs(), self.home.cache.get()) {
            let _visit = quiet::visit(this_cpu());
            // What was wrong with it is in the journal.
            let _ = slabs.free(this_cpu(), cache, object);
        }
    }
}
