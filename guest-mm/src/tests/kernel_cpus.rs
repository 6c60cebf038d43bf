//! CPUs that use the kernel's tables in tests: each remembers every translation it ever used until it is told to forget
//! it, as strictly as hardware may.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::host::HostFrames;
use crate::kernel_map::{KernelRange, KernelTables, KernelTlb};
use crate::pagetable::{Access, PageFault, translate};
use crate::pfn::{PAGE_SIZE, Pfn};

pub(crate) struct Cpus {
    tables: KernelTables,
    caches: RefCell<Vec<BTreeMap<u64, Pfn>>>,
    /// The one that runs.
    pub(crate) current: Cell<usize>,
    pub(crate) flushes: Cell<u32>,
    pub(crate) local_flushes: Cell<u32>,
}

impl Cpus {
    pub(crate) fn new(tables: KernelTables, nr_cpus: usize) -> Self {
        Self {
            tables,
            caches: RefCell::new(std::vec![BTreeMap::new(); nr_cpus]),
            current: Cell::new(0),
            flushes: Cell::new(0),
            local_flushes: Cell::new(0),
        }
    }

    /// The frame that the current CPU reaches at an address: the cached one if there is one, right or not.
    pub(crate) fn reach(&self, frames: &HostFrames, va: u64) -> Result<Pfn, PageFault> {
        let page = va / PAGE_SIZE;
        let mut caches = self.caches.borrow_mut();
        let cache = &mut caches[self.current.get()];
        if let Some(&pfn) = cache.get(&page) {
            return Ok(pfn);
        }
        let found = translate(frames, self.tables.root(), va, Access::Write)?;
        let pfn = Pfn::containing(found.gpa).unwrap();
        cache.insert(page, pfn);
        Ok(pfn)
    }

    /// Whether any CPU could still reach the frame by what it remembers.
    pub(crate) fn remembers(&self, pfn: Pfn) -> bool {
        let caches = self.caches.borrow();
        caches
            .iter()
            .any(|cache| cache.values().any(|&cached| cached == pfn))
    }
}

fn forget(cache: &mut BTreeMap<u64, Pfn>, range: KernelRange) {
    cache.retain(|page, _| !range.contains(page * PAGE_SIZE));
}

impl KernelTlb for Cpus {
    fn flush(&self, range: KernelRange) {
        self.flushes.set(self.flushes.get() + 1);
        self.caches
            .borrow_mut()
            .iter_mut()
            .for_each(|cache| forget(cache, range));
    }

    fn flush_local(&self, range: KernelRange) {
        self.local_flushes.set(self.local_flushes.get() + 1);
        forget(&mut self.caches.borrow_mut()[self.current.get()], range);
    }

    fn exchange(&self, range: KernelRange, change: &mut dyn FnMut()) {
        change();
        self.flush(range);
    }
}
