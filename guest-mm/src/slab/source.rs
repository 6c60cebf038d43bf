//! Where slabs come from: chunks of frames, each with room for a slab descriptor.

use guest_sync::Cpu;

use super::Gfp;
use super::head::SlabFields;
use crate::pfn::{Order, Pfn};

/// The page allocator, as the slab allocator needs it. Nothing here may call the slab allocator or a heap on top of
/// it.
pub trait SlabSource {
    /// How many CPUs there are.
    fn nr_cpus(&self) -> u8;

    /// How many nodes there are, at least 1.
    fn nr_nodes(&self) -> usize;

    /// The node whose memory a CPU reaches fastest.
    fn node_of_cpu(&self, cpu: &Cpu) -> usize;

    /// The node that a slab's memory belongs to.
    fn node_of(&self, slab: Pfn) -> usize;

    /// Takes a chunk and marks it as a slab. Contents and fields are unknown.
    fn take(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn>;

    /// Gives a slab's chunk back.
    fn put(&self, cpu: &Cpu, slab: Pfn, order: Order);

    /// The first frame of the slab that a frame belongs to; `None` if it belongs to none.
    fn slab_of(&self, pfn: Pfn) -> Option<Pfn>;

    /// The fields of a slab's first frame. May panic if there is no slab.
    fn fields(&self, slab: Pfn) -> SlabFields<'_>;
}

impl<P: SlabSource + ?Sized> SlabSource for &P {
    fn nr_cpus(&self) -> u8 {
        (**self).nr_cpus()
    }

    fn nr_nodes(&self) -> usize {
        (**self).nr_nodes()
    }

    fn node_of_cpu(&self, cpu: &Cpu) -> usize {
        (**self).node_of_cpu(cpu)
    }

    fn node_of(&self, slab: Pfn) -> usize {
        (**self).node_of(slab)
    }

    fn take(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        (**self).take(cpu, gfp, order)
    }

    fn put(&self, cpu: &Cpu, slab: Pfn, order: Order) {
        (**self).put(cpu, slab, order);
    }

    #[inline]
    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        (**self).slab_of(pfn)
    }

    #[inline]
    fn fields(&self, slab: Pfn) -> SlabFields<'_> {
        (**self).fields(slab)
    }
}
