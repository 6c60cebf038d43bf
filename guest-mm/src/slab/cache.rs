//! The cache descriptor: objects of one kind, and where they are.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::atomic::{AtomicBool, AtomicU32};
use guest_sync::{Cpu, CpuStack, Local, PerCpu, SpinLock};

use super::layout::{Alignment, SlabLayout};
use super::lists::NodeLists;
use super::object::ObjAddr;
use crate::frames::Frames;
use crate::gfp::Gfp;

/// Number of a cache among all caches of the allocator, as slab descriptors name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CacheId(pub(crate) u16);

/// Brings an object into the state in which it is handed out: called once for each object of a new slab, before
/// anybody has it (in debug mode: whenever it is taken). Whoever frees an object leaves it in that state. It must not
/// use the cache.
pub type Constructor = fn(&dyn Frames, ObjAddr);

/// Whether a cache watches over its objects, at the price of time and room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Debugging {
    /// Nothing is written next to or into free objects. Bad frees are noticed when the object gets back to its slab.
    #[default]
    Off,
    /// Red zones around each object, poison in free ones, and who took and freed it last
    /// (Linux `SLAB_RED_ZONE | SLAB_POISON | SLAB_STORE_USER`).
    On,
}

/// Whether the objects of a cache can be moved, or given up, so that their memory can leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Objects {
    /// No: somebody has their addresses.
    #[default]
    Fixed,
    /// Somebody knows all that leads to them ([`MoveObjects`](super::MoveObjects)). Slabs may come from removable memory.
    Movable,
}

/// What a cache is for.
#[derive(Clone, Copy, Debug)]
pub struct CacheSpec {
    /// Name in `slabinfo`, without spaces.
    pub name: &'static str,
    /// Bytes of an object, 1 to 131072.
    pub size: u32,
    /// How objects are aligned.
    pub align: Alignment,
    /// Added to every request for frames: `DMA` or `RECLAIMABLE`.
    pub gfp: Gfp,
    /// What brings an object into its first state.
    pub constructor: Option<Constructor>,
    /// Whether misuse is watched for.
    pub debug: Debugging,
    /// Whether objects can be moved.
    pub objects: Objects,
}

impl CacheSpec {
    /// A cache of word-aligned objects without anything special.
    pub const fn new(name: &'static str, size: u32) -> Self {
        Self {
            name,
            size,
            align: Alignment::Word,
            gfp: Gfp::NONE,
            constructor: None,
            debug: Debugging::Off,
            objects: Objects::Fixed,
        }
    }
}

/// A CPU's objects, ready to be taken without a lock.
#[derive(Debug, Default)]
pub(crate) struct LocalCache {
    pub(crate) objects: CpuStack<128>,
    /// It was refilled or emptied into slabs since the last look: it is in use, and is spared this time.
    pub(crate) touched: AtomicBool,
}

/// A cache. Its operations are those of the [`SlabAllocator`](super::SlabAllocator) that made it.
///
/// Lock order: a node's lists, then the journal of misuses. Neither is held while frames are taken or given back.
pub struct Cache {
    pub(crate) local: PerCpu<LocalCache>,
    /// Objects that a CPU keeps at hand, 1..=120.
    pub(crate) limit: AtomicU32,
    /// Objects that move between a CPU and the slabs at once, 1..=`limit`.
    pub(crate) batch: AtomicU32,
    pub(crate) id: CacheId,
    /// No slab is added any more.
    pub(crate) closed: AtomicBool,
    pub(crate) name: &'static str,
    pub(crate) layout: SlabLayout,
    pub(crate) gfp: Gfp,
    pub(crate) constructor: Option<Constructor>,
    pub(crate) objects: Objects,
    pub(crate) nodes: Box<[SpinLock<NodeLists>]>,
}

impl Cache {
    pub(crate) fn new(id: CacheId, spec: &CacheSpec, nr_cpus: u8, nr_nodes: usize) -> Option<Self> {
        let layout = SlabLayout::new(spec.size, spec.align, spec.debug == Debugging::On)?;
        let (limit, batch) = layout.local_limits();
        Some(Self {
            local: PerCpu::new(nr_cpus, |_| LocalCache::default()),
            limit: AtomicU32::new(limit),
            batch: AtomicU32::new(batch),
            id,
            closed: AtomicBool::new(false),
            name: spec.name,
            layout,
            gfp: spec.gfp,
            constructor: spec.constructor,
            objects: spec.objects,
            nodes: (0..nr_nodes)
                .map(|_| SpinLock::new(NodeLists::default()))
                .collect(),
        })
    }

    /// Name in `slabinfo`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What its slabs look like.
    pub const fn layout(&self) -> &SlabLayout {
        &self.layout
    }

    /// Objects that a CPU keeps at hand, 1..=120, and how many of them move to or from the slabs at once.
    pub fn tunables(&self) -> (u32, u32) {
        (self.limit.load(Relaxed), self.batch.load(Relaxed))
    }

    /// Sets what [`tunables`](Self::tunables) tells; `None`, and nothing is changed, unless
    /// 1 <= `batch` <= `limit` <= 120.
    pub fn tune(&self, limit: u32, batch: u32) -> Option<()> {
        if batch == 0 || batch > limit || limit > 120 {
            return None;
        }
        self.limit.store(limit, Relaxed);
        self.batch.store(batch, Relaxed);
        Some(())
    }

    /// Objects that its slabs may have free before slabs are given back: what every CPU could ask for at once, and a
    /// slab.
    pub fn free_limit(&self) -> u64 {
        let cpus = self.local.iter().count() as u64;
        (1 + cpus) * u64::from(self.batch.load(Relaxed)) + u64::from(self.layout.nr_objects)
    }

    #[inline]
    pub(crate) fn is_debugged(&self) -> bool {
        self.layout.debug.is_some()
    }

    /// The objects that the CPU has at hand.
    #[inline]
    pub(crate) fn own<'a>(&'a self, cpu: &'a Cpu) -> Local<'a, CpuStack<128>> {
        self.local.this(cpu).map(|local| &local.objects)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache {} ({} bytes)", self.name, self.layout.object_size)
    }
}
