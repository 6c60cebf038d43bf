//! How this kernel gets memory back: from the programs' pages, and from its own caches. Each step is one that nobody checks the memory manager
//! during (machine/quiet.rs).

use crate::kernel::Memory;
use crate::machine::cpu::this_cpu;
use crate::machine::quiet;
use alloc::boxed::Box;
use guest_mm::Zone;
use guest_mm::mm::Shrunk;
use guest_mm::phys::PhysicalMemory;
use guest_mm::reclaim::{PageReclaim, Reclaim, Scheme, Shrinker};
use guest_sync::Cpu;

/// A step of it.
struct Step<T>(T);

impl PageReclaim for Step<&'static Memory> {
    fn shrink_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        let _visit = quiet::visit(this_cpu());
        self.0.shrink_zone(cpu, zone, nr)
    }

    fn launder_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        let _visit = quiet::visit(this_cpu());
        self.0.launder_zone(cpu, zone, nr)
    }
}

impl Shrinker for Step<&'static dyn Shrinker> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn freeable_pages(&self) -> u64 {
        self.0.freeable_pages()
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        let _visit = quiet::visit(this_cpu());
        self.0.shrink(cpu, nr_pages)
    }
}

/// Reclaim over all there is: the caches are asked in this order.
pub(crate) fn start(
    phys: &'static PhysicalMemory<'static>,
    mm: &'static Memory,
    caches: [&'static dyn Shrinker; 5],
    scheme: Scheme,
) -> Reclaim<'static> {
    let pages: &dyn PageReclaim = Box::leak(Box::new(Step(mm)));
    let caches = caches.map(|cache| {
        let step: &'static dyn Shrinker = Box::leak(Box::new(Step(cache)));
        step
    });
    let caches: &[&dyn Shrinker] = Box::leak(Box::new(caches));
    Reclaim::new(phys, caches).with_pages(pages, scheme)
}
