//! Where a pool's elements come from: slab objects, general caches, or anything else that can fail.

use alloc::sync::Arc;

use guest_sync::Cpu;

use crate::frames::Frames;
use crate::gfp::Gfp;
use crate::slab::{Cache, ObjAddr, SlabAllocator, SlabSource};

/// An allocator of elements.
pub trait PoolSource {
    /// What the pool is made of.
    type Element;

    /// Takes an element; must not wait unless `gfp` says so.
    fn take(&self, cpu: &Cpu, gfp: Gfp) -> Option<Self::Element>;

    /// Gives an element back.
    fn put(&self, cpu: &Cpu, element: Self::Element);
}

impl<S: PoolSource + ?Sized> PoolSource for &S {
    type Element = S::Element;

    fn take(&self, cpu: &Cpu, gfp: Gfp) -> Option<Self::Element> {
        (**self).take(cpu, gfp)
    }

    fn put(&self, cpu: &Cpu, element: Self::Element) {
        (**self).put(cpu, element);
    }
}

/// Objects of a cache.
#[derive(Debug)]
pub struct ObjectSource<'a, F, P> {
    /// The allocator of the cache.
    pub slabs: &'a SlabAllocator<F, P>,
    /// The cache.
    pub cache: Arc<Cache>,
}

impl<F: Frames, P: SlabSource> PoolSource for ObjectSource<'_, F, P> {
    type Element = ObjAddr;

    fn take(&self, cpu: &Cpu, gfp: Gfp) -> Option<ObjAddr> {
        self.slabs.alloc(cpu, &self.cache, gfp).ok()
    }

    /// A bad free is in the allocator's journal.
    fn put(&self, cpu: &Cpu, object: ObjAddr) {
        let _ = self.slabs.free(cpu, &self.cache, object);
    }
}

/// Memory of one size from the general caches.
#[derive(Debug)]
pub struct KmallocSource<'a, F, P> {
    /// The allocator.
    pub slabs: &'a SlabAllocator<F, P>,
    /// Bytes of an element.
    pub size: usize,
}

impl<F: Frames, P: SlabSource> PoolSource for KmallocSource<'_, F, P> {
    type Element = ObjAddr;

    fn take(&self, cpu: &Cpu, gfp: Gfp) -> Option<ObjAddr> {
        self.slabs.kmalloc(cpu, self.size, gfp).ok()
    }

    /// A bad free is in the allocator's journal.
    fn put(&self, cpu: &Cpu, object: ObjAddr) {
        let _ = self.slabs.kfree(cpu, object);
    }
}
