//! Where slabs come from: chunks of frames, each with room for a slab descriptor.

use guest_sync::Cpu;

use crate::gfp::Gfp;
use crate::page::{Page, PageFlags, PageState};
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;
use crate::zone::ZoneKind;

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

    /// As [`take`](Self::take), for objects that can be moved: from memory that can be unplugged too, and not the last of what others need.
    /// `None` leaves it to `take`.
    fn take_removable(&self, _cpu: &Cpu, _gfp: Gfp, _order: Order) -> Option<Pfn> {
        None
    }

    /// Gives a slab's chunk back.
    fn put(&self, cpu: &Cpu, slab: Pfn, order: Order);

    /// The first frame of the slab that a frame belongs to; `None` if it belongs to none.
    fn slab_of(&self, pfn: Pfn) -> Option<Pfn>;

    /// The descriptor of a slab's first frame; its fields belong to the slab allocator. May panic if there is no slab.
    fn page(&self, slab: Pfn) -> &Page;
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

    fn take_removable(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        (**self).take_removable(cpu, gfp, order)
    }

    fn put(&self, cpu: &Cpu, slab: Pfn, order: Order) {
        (**self).put(cpu, slab, order);
    }

    #[inline]
    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        (**self).slab_of(pfn)
    }

    #[inline]
    fn page(&self, slab: Pfn) -> &Page {
        (**self).page(slab)
    }
}

impl SlabSource for PhysicalMemory<'_> {
    fn nr_cpus(&self) -> u8 {
        self.topology().nr_cpus()
    }

    fn nr_nodes(&self) -> usize {
        self.topology().nodes().count()
    }

    fn node_of_cpu(&self, cpu: &Cpu) -> usize {
        self.topology().node_of(cpu.id()).index()
    }

    fn node_of(&self, slab: Pfn) -> usize {
        self.zone_of(slab).map_or(0, |zone| zone.node().index())
    }

    fn take(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        let slab = self.alloc_pages(cpu, gfp, order).ok()?;
        SlabSource::page(self, slab).add_flags(PageFlags::SLAB);
        Some(slab)
    }

    fn take_removable(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        let near = if gfp.has(Gfp::THIS_NODE) {
            Gfp::THIS_NODE
        } else {
            Gfp::NONE
        };
        let take = |gfp: Gfp| self.take(cpu, gfp.with(near), order);
        let slab = take(Gfp::KERNEL_RELOCATABLE).or_else(|| take(Gfp::USER))?;
        // Objects are reached at their physical addresses, which the kernel has mapped of every block.
        let is_mapped = self
            .zone_of(slab)
            .is_some_and(|zone| zone.kind() != ZoneKind::HighMem);
        if is_mapped {
            return Some(slab);
        }
        self.put(cpu, slab, order);
        None
    }

    fn put(&self, cpu: &Cpu, slab: Pfn, _: Order) {
        SlabSource::page(self, slab).clear();
        if let Err(error) = self.free_pages(cpu, slab) {
            panic!("a slab is given back: {error}");
        }
    }

    #[inline]
    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        let page = Self::page(self, pfn)?;
        if page.flags().has(PageFlags::SLAB) {
            return Some(pfn);
        }
        // Inside a chunk only its first frame says what it is.
        if page.state() != PageState::Blank {
            return None;
        }
        let first = self.table.head_of(pfn)?;
        let is_slab = Self::page(self, first)?.flags().has(PageFlags::SLAB);
        is_slab.then_some(first)
    }

    #[inline]
    fn page(&self, slab: Pfn) -> &Page {
        Self::page(self, slab).expect("a block with a slab on it stays online")
    }
}
