//! Objects of two kinds that can leave their slabs: names, which are given up when there is no memory for them, and inodes, which stay then, and
//! while somebody uses them.

use core::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::host::HostFrames;
use crate::migrate::Refusal;
use crate::slab::{
    Alignment, Cache, CacheSpec, Debugging, IsLeaving, MoveObjects, NoObject, ObjAddr, Objects as Kind,
    SlabAllocator, SlabSource,
};
use crate::tests::machine::TestMm;
use crate::tests::sim::executor::pause;
use crate::tests::sim::{Sim, count};
use crate::vmalloc::KernelMoved;
use crate::{Frames, Gfp, Order, PAGE_SIZE, Page, Pfn, PhysicalMemory};

/// Most objects of a kind.
const MOST: usize = 60;
/// Most that are made or freed at a time.
const AT_A_TIME: u64 = 12;

type Slabs<'m> = SlabAllocator<Borrowed<'m>, FromBlocks<'m>>;

/// The machine's frames.
struct Borrowed<'m>(&'m HostFrames);

impl Frames for Borrowed<'_> {
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        self.0.read(pfn, index)
    }

    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        self.0.write(pfn, index, value);
    }

    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        self.0.exchange(pfn, index, value)
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        self.0.zero(pfn, order);
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        self.0.copy(from, to, order);
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        self.0.read_bytes(pfn, offset, bytes);
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        self.0.write_bytes(pfn, offset, bytes);
    }
}

/// The page allocator, of which slabs that can leave come from blocks first.
struct FromBlocks<'m>(&'m PhysicalMemory<'m>);

impl SlabSource for FromBlocks<'_> {
    fn nr_cpus(&self) -> u8 {
        self.0.nr_cpus()
    }

    fn nr_nodes(&self) -> usize {
        self.0.nr_nodes()
    }

    fn node_of_cpu(&self, cpu: &Cpu) -> usize {
        self.0.node_of_cpu(cpu)
    }

    fn node_of(&self, slab: Pfn) -> usize {
        SlabSource::node_of(self.0, slab)
    }

    fn take(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        SlabSource::take(self.0, cpu, gfp, order)
    }

    fn take_removable(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        let slab = self.take(cpu, Gfp::USER, order);
        slab.or_else(|| self.0.take_removable(cpu, gfp, order))
    }

    fn put(&self, cpu: &Cpu, slab: Pfn, order: Order) {
        SlabSource::put(self.0, cpu, slab, order);
    }

    fn slab_of(&self, pfn: Pfn) -> Option<Pfn> {
        self.0.slab_of(pfn)
    }

    fn page(&self, slab: Pfn) -> &Page {
        SlabSource::page(self.0, slab)
    }
}

/// See the module.
pub(super) struct Objects<'m> {
    slabs: Arc<Slabs<'m>>,
    kinds: [Owner<'m>; 2],
    /// Programs that are at an object.
    in_use: Cell<u32>,
}

/// What an owner does with an object for which there is no other place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Homeless {
    GivenUp,
    Stays,
}

/// All objects of a kind, by what is in each of their words.
struct Owner<'m> {
    slabs: Arc<Slabs<'m>>,
    cache: Arc<Cache>,
    homeless: Homeless,
    held: SpinLock<BTreeMap<u64, Object>>,
}

#[derive(Clone, Copy)]
struct Object {
    place: ObjAddr,
    /// Somebody has its address.
    is_in_use: bool,
}

impl MoveObjects for Owner<'_> {
    fn cache(&self) -> Option<&Cache> {
        Some(&self.cache)
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        let mut homeless = Vec::new();
        let mut outcome = Ok(());
        for (stamp, object) in self.held.lock().iter_mut() {
            if !is_leaving(object.place) || object.is_in_use {
                continue;
            }
            match self.slabs.relocate(cpu, &self.cache, object.place) {
                Ok(place) => object.place = place,
                Err(_) if self.homeless == Homeless::GivenUp => homeless.push(*stamp),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        homeless.into_iter().for_each(|stamp| self.free(cpu, stamp));
        outcome
    }
}

impl<'m> Owner<'m> {
    fn new(slabs: &Arc<Slabs<'m>>, spec: &CacheSpec, homeless: Homeless) -> Self {
        Self {
            slabs: slabs.clone(),
            cache: slabs.create(spec).unwrap(),
            homeless,
            held: SpinLock::default(),
        }
    }

    /// The words of an object, each as a frame and a place in it.
    fn words(&self, place: ObjAddr) -> impl Iterator<Item = (Pfn, usize)> + use<> {
        let words = u64::from(self.cache.layout().object_size) / 8;
        (0..words).map(move |word| {
            let at = place.gpa() + word * 8;
            let index = usize::try_from(at % PAGE_SIZE / 8).unwrap();
            (Pfn::containing(at).unwrap(), index)
        })
    }

    fn make(&self, cpu: &Cpu, stamp: u64) -> Result<(), NoObject> {
        let place = self.slabs.alloc(cpu, &self.cache, Gfp::KERNEL)?;
        for (pfn, index) in self.words(place) {
            self.slabs.frames().write(pfn, index, stamp);
        }
        let is_in_use = false;
        let other = self.held.lock().insert(stamp, Object { place, is_in_use });
        assert!(other.is_none());
        Ok(())
    }

    fn free(&self, cpu: &Cpu, stamp: u64) {
        let object = self.held.lock().remove(&stamp).expect("one that is held");
        self.check(stamp, object);
        self.slabs.free(cpu, &self.cache, object.place).unwrap();
    }

    fn check(&self, stamp: u64, object: Object) {
        for (pfn, index) in self.words(object.place) {
            let found = self.slabs.frames().read(pfn, index);
            assert_eq!(found, stamp, "an object of {} in {pfn}", self.cache.name());
        }
    }

    fn nr_held(&self) -> usize {
        self.held.lock().len()
    }

    /// Some object that nobody uses.
    fn some(&self, sim: &Sim<'_>) -> Option<u64> {
        let held = self.held.lock();
        let at = usize::try_from(sim.below(held.len().max(1) as u64)).unwrap();
        let (stamp, object) = held.iter().nth(at)?;
        (!object.is_in_use).then_some(*stamp)
    }

    fn set_in_use(&self, stamp: u64, is_in_use: bool) -> ObjAddr {
        let mut held = self.held.lock();
        let object = held.get_mut(&stamp).expect("one that is held");
        object.is_in_use = is_in_use;
        object.place
    }
}

/// An object stays where it is as long as this exists.
struct InUse<'a, 'm> {
    objects: &'a Objects<'m>,
    owner: &'a Owner<'m>,
    stamp: u64,
}

impl Drop for InUse<'_, '_> {
    fn drop(&mut self) {
        self.owner.set_in_use(self.stamp, false);
        self.objects.in_use.set(self.objects.in_use.get() - 1);
    }
}

impl<'m> Objects<'m> {
    pub(super) fn new(mm: &'m TestMm<'m>) -> Self {
        let slabs = Arc::new(SlabAllocator::new(
            Borrowed(&mm.frames),
            FromBlocks(mm.phys),
            Debugging::Off,
        ));
        let names = CacheSpec {
            objects: Kind::Movable,
            debug: Debugging::On,
            ..CacheSpec::new("name", 72)
        };
        // What is known of its slabs is an object of another cache.
        let inodes = CacheSpec {
            objects: Kind::Movable,
            align: Alignment::CacheLine,
            ..CacheSpec::new("inode", 1000)
        };
        Self {
            kinds: [
                Owner::new(&slabs, &names, Homeless::GivenUp),
                Owner::new(&slabs, &inodes, Homeless::Stays),
            ],
            slabs,
            in_use: Cell::new(0),
        }
    }

    pub(super) fn fill_up(&self, sim: &Sim<'_>) {
        for owner in &self.kinds {
            while owner.nr_held() < MOST && owner.make(sim.cpu, sim.below(u64::MAX)).is_ok() {}
        }
    }

    /// One call.
    pub(super) async fn turn(&self, sim: &Sim<'_>) {
        let owner = &self.kinds[usize::from(sim.one_in(2))];
        let nr = 1 + sim.below(AT_A_TIME);
        match sim.below(8) {
            0..3 if owner.nr_held() < MOST => {
                for _ in 0..nr {
                    let stamp = sim.below(u64::MAX);
                    let made = sim.with_failures(|| owner.make(sim.cpu, stamp));
                    count(&sim.seen.no_memory, u32::from(made.is_err()));
                }
            }
            0..4 => {
                for stamp in (0..nr).filter_map(|_| owner.some(sim)).collect::<BTreeSet<u64>>() {
                    owner.free(sim.cpu, stamp);
                }
            }
            4 => {
                self.slabs.shrink(sim.cpu, &owner.cache);
            }
            5 | 6 => self.use_one(sim, owner).await,
            _ => check(sim, owner),
        }
    }

    /// Keeps the address of an object for some time.
    async fn use_one(&self, sim: &Sim<'_>, owner: &Owner<'m>) {
        let Some(stamp) = owner.some(sim) else { return };
        let place = owner.set_in_use(stamp, true);
        self.in_use.set(self.in_use.get() + 1);
        let objects = self;
        let _in_use = InUse {
            objects,
            owner,
            stamp,
        };
        for _ in 0..1 + sim.below(8) {
            pause().await;
        }
        let is_in_use = true;
        owner.check(stamp, Object { place, is_in_use });
    }

    /// Whether somebody has the address of an object.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.get() > 0
    }

    /// Those slabs leave that migration has refused.
    pub(super) fn move_off(&self, sim: &Sim<'_>, refused: &mut Vec<Refusal>) -> KernelMoved {
        let [names, inodes] = &self.kinds;
        self.slabs.move_off(sim.cpu, &[names, inodes], refused)
    }

    pub(super) fn validate(&self) {
        self.slabs.validate().unwrap();
        let misuse = self.slabs.next_misuse();
        assert!(misuse.is_none(), "{}", misuse.unwrap());
    }

    /// All go that nobody uses, with their slabs.
    pub(super) fn free_all(&self, sim: &Sim<'_>) {
        for owner in &self.kinds {
            let unused = |(stamp, object): (&u64, &Object)| (!object.is_in_use).then_some(*stamp);
            let stamps: Vec<u64> = owner.held.lock().iter().filter_map(unused).collect();
            stamps.into_iter().for_each(|stamp| owner.free(sim.cpu, stamp));
        }
        self.slabs.shrink_all(sim.cpu, u64::MAX);
    }

    /// Nobody needs them any more.
    pub(super) fn destroy(&self, sim: &Sim<'_>) {
        for owner in &self.kinds {
            self.slabs.destroy(sim.cpu, &owner.cache).unwrap();
        }
        self.slabs.shrink_all(sim.cpu, u64::MAX);
        self.validate();
    }
}

fn check(sim: &Sim<'_>, owner: &Owner<'_>) {
    for (stamp, object) in owner.held.lock().iter() {
        owner.check(*stamp, *object);
        count(&sim.seen.kernel_words, 1);
    }
}
