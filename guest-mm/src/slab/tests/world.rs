//! A machine for slabs: two nodes of ordinary memory with a first-fit allocator, which fails when it is told to.

use std::vec::Vec;

use guest_sync::atomic::{AtomicU32, Ordering::Relaxed};
use guest_sync::{Cpu, CpuId, CpuSet, SpinLock};

use crate::gfp::Gfp;
use crate::host::HostFrames;
use crate::page::Page;
use crate::slab::{Cache, CacheSpec, Debugging, ObjAddr, SlabAllocator, SlabSource};
use crate::{Frames, Order, Pfn, PfnRange};

/// Frames of a node: 8 MiB.
pub(crate) const NODE_PAGES: u32 = 2048;
/// First frame of node 0; not 0, so that no address is.
pub(crate) const BASE: u32 = 512;

#[derive(Debug, Default)]
struct Fields {
    page: Page,
    /// First frame of the slab plus 1; 0 in no slab.
    slab: AtomicU32,
}

/// The page allocator.
#[derive(Debug)]
pub(crate) struct TestSource {
    nr_cpus: u8,
    nr_nodes: usize,
    fields: Vec<Fields>,
    used: SpinLock<Vec<bool>>,
    /// Requests that still succeed.
    good: AtomicU32,
    pub(crate) requests: AtomicU32,
    /// Frames below this number are not given out.
    leaving: AtomicU32,
}

impl TestSource {
    fn new(nr_cpus: u8, nr_nodes: usize) -> Self {
        let nr_pages = NODE_PAGES as usize * nr_nodes;
        Self {
            nr_cpus,
            nr_nodes,
            fields: (0..nr_pages).map(|_| Fields::default()).collect(),
            used: SpinLock::new(std::vec![false; nr_pages]),
            good: AtomicU32::new(u32::MAX),
            requests: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
        }
    }

    /// After `good` more requests there is no memory.
    pub(crate) fn fail_after(&self, good: u32) {
        self.good.store(good, Relaxed);
    }

    /// From now on nothing is taken from the frames below a number.
    pub(crate) fn leave_below(&self, end: u32) {
        self.leaving.store(end, Relaxed);
    }

    pub(crate) fn used_pages(&self) -> u64 {
        self.used.lock().iter().map(|&used| u64::from(used)).sum()
    }

    fn at(&self, pfn: Pfn) -> &Fields {
        &self.fields[(pfn.number() - BASE) as usize]
    }

    fn take_on(&self, node: usize, order: Order) -> Option<Pfn> {
        let (nr_pages, start) = (order.nr_pages() as usize, node * NODE_PAGES as usize);
        let mut used = self.used.lock();
        let first = (start..start + NODE_PAGES as usize)
            .step_by(nr_pages)
            .filter(|&first| BASE as usize + first >= self.leaving.load(Relaxed) as usize)
            .find(|&first| used[first..first + nr_pages].iter().all(|used| !used))?;
        used[first..first + nr_pages].fill(true);
        Some(Pfn::new(BASE + u32::try_from(first).unwrap()))
    }
}

impl SlabSource for TestSource {
    fn nr_cpus(&self) -> u8 {
        self.nr_cpus
    }

    fn nr_nodes(&self) -> usize {
        self.nr_nodes
    }

    fn node_of_cpu(&self, cpu: &Cpu) -> usize {
        cpu.id().index() % self.nr_nodes
    }

    fn node_of(&self, slab: Pfn) -> usize {
        ((slab.number() - BASE) / NODE_PAGES) as usize
    }

    fn take(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        self.requests.fetch_add(1, Relaxed);
        let good = self.good.load(Relaxed);
        if good == 0 {
            return None;
        }
        if good != u32::MAX {
            self.good.store(good - 1, Relaxed);
        }
        let own = self.node_of_cpu(cpu);
        let others = (0..self.nr_nodes).filter(|&node| node != own && !gfp.has(Gfp::THIS_NODE));
        let slab = core::iter::once(own)
            .chain(others)
            .find_map(|node| self.take_on(node, order))?;
        for page in 0..order.nr_pages() {
            self.at(slab + page).slab.store(slab.number() + 1, Relaxed);
        }
        // What a slab descriptor is made of is whatever was there before.
        self.at(slab).page.set_private(0xdead_beef);
        self.at(slab).page.set_next(0xdead_beef);
        Some(slab)
    }

    fn put(&self, _: &Cpu, slab: Pfn, order: Order) {
        let first = (slab.number() - BASE) as usize;
        for page in 0..order.nr_pages() {
            let was = self.at(slab + page).slab.swap(0, Relaxed);
            assert_eq!(
                was,
                slab.number() + 1,
                "{slab} is given back, but is no slab of order {order:?}"
            );
        }
        self.used.lock()[first..first + order.nr_pages() as usize].fill(false);
    }

    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        let index = pfn.number().checked_sub(BASE)? as usize;
        self.fields
            .get(index)?
            .slab
            .load(Relaxed)
            .checked_sub(1)
            .map(Pfn::new)
    }

    fn page(&self, slab: Pfn) -> &Page {
        let fields = self.at(slab);
        assert_eq!(
            fields.slab.load(Relaxed),
            slab.number() + 1,
            "{slab} is no slab's first frame"
        );
        &fields.page
    }
}

pub(crate) type TestSlabs = SlabAllocator<HostFrames, TestSource>;

/// The allocator, and tokens for all CPUs.
pub(crate) fn machine(nr_cpus: u8, nr_nodes: usize, general: Debugging) -> (TestSlabs, Vec<Cpu>) {
    let mut frames = HostFrames::new();
    let nr_pages = NODE_PAGES * u32::try_from(nr_nodes).unwrap();
    frames.plug(PfnRange::new(Pfn::new(BASE), nr_pages).unwrap());
    let set = CpuSet::new(nr_cpus).unwrap();
    let cpus = (0..nr_cpus)
        .map(|id| set.claim(CpuId::new(id).unwrap()).unwrap())
        .collect();
    (
        SlabAllocator::new(frames, TestSource::new(nr_cpus, nr_nodes), general),
        cpus,
    )
}

/// One CPU, one node, nothing debugged.
pub(crate) fn small_machine() -> (TestSlabs, Cpu) {
    let (slabs, mut cpus) = machine(1, 1, Debugging::Off);
    (slabs, cpus.remove(0))
}

/// The specification of a debugged cache.
pub(crate) fn debugged(name: &'static str, size: u32) -> CacheSpec {
    CacheSpec {
        debug: Debugging::On,
        ..CacheSpec::new(name, size)
    }
}

/// The byte at `offset` from an object.
pub(crate) fn byte(slabs: &TestSlabs, object: ObjAddr, offset: i64) -> u8 {
    let gpa = object.gpa().checked_add_signed(offset).unwrap();
    let mut byte = [0];
    let pfn = Pfn::containing(gpa).unwrap();
    slabs.frames().read_bytes(pfn, (gpa % 4096) as usize, &mut byte);
    byte[0]
}

/// Writes bytes at `offset` from an object, whoever they belong to.
pub(crate) fn poke(slabs: &TestSlabs, object: ObjAddr, offset: i64, bytes: &[u8]) {
    let start = object.gpa().checked_add_signed(offset).unwrap();
    for (gpa, &byte) in (start..).zip(bytes) {
        let pfn = Pfn::containing(gpa).unwrap();
        slabs.frames().write_bytes(pfn, (gpa % 4096) as usize, &[byte]);
    }
}

/// Takes `count` objects.
pub(crate) fn take(slabs: &TestSlabs, cpu: &Cpu, cache: &Cache, count: usize) -> Vec<ObjAddr> {
    (0..count)
        .map(|_| slabs.alloc(cpu, cache, Gfp::KERNEL).unwrap())
        .collect()
}

/// Frees them all.
pub(crate) fn put(slabs: &TestSlabs, cpu: &Cpu, cache: &Cache, objects: &[ObjAddr]) {
    for &object in objects {
        slabs.free(cpu, cache, object).unwrap();
    }
}
