//! Slabs that are emptied: objects go elsewhere with what is in them, nobody gets one of a slab that is leaving, and what cannot move
//! stays in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::gfp::Gfp;
use crate::migrate::{PageKind, Refusal, RefusalReason};
use crate::page::KernelUse;
use crate::slab::tests::world::{BASE, TestSlabs, byte, machine, poke, put, take};
use crate::slab::{
    Alignment, Cache, CacheSpec, Debugging, IsLeaving, MoveObjects, NoObject, ObjAddr, Objects, SlabSource,
};
use crate::{Order, Pfn};

/// An owner of objects: by number, each with its number in every byte.
struct Owner<'a> {
    slabs: &'a TestSlabs,
    cache: Arc<Cache>,
    objects: SpinLock<BTreeMap<u8, ObjAddr>>,
    /// Somebody is using these.
    busy: Vec<u8>,
}

impl MoveObjects for Owner<'_> {
    fn cache(&self) -> Option<&Cache> {
        Some(&self.cache)
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        for (number, object) in self.objects.lock().iter_mut() {
            if is_leaving(*object) && !self.busy.contains(number) {
                *object = self.slabs.relocate(cpu, &self.cache, *object)?;
            }
        }
        Ok(())
    }
}

impl<'a> Owner<'a> {
    fn new(slabs: &'a TestSlabs, cpu: &Cpu, spec: &CacheSpec, count: u8) -> Self {
        let cache = slabs.create(spec).unwrap();
        let objects = take(slabs, cpu, &cache, count.into());
        for (number, &object) in (0..).zip(&objects) {
            poke(slabs, object, 0, &std::vec![number; spec.size as usize]);
        }
        Self {
            slabs,
            cache,
            objects: SpinLock::new((0..).zip(objects).collect()),
            busy: Vec::new(),
        }
    }

    fn check(&self) {
        let size = i64::from(self.cache.layout().object_size);
        for (&number, &object) in self.objects.lock().iter() {
            for offset in [0, size / 2, size - 1] {
                assert_eq!(
                    byte(self.slabs, object, offset),
                    number,
                    "object {number} at {object}"
                );
            }
        }
    }

    fn free_all(&self, cpu: &Cpu) {
        let objects: Vec<ObjAddr> = self.objects.lock().values().copied().collect();
        put(self.slabs, cpu, &self.cache, &objects);
    }
}

/// What migration refuses of the frames below a number.
fn refusals(slabs: &TestSlabs, end: u32) -> Vec<Refusal> {
    let slab_of = |pfn| slabs.source().slab_of(pfn);
    let heads = (BASE..end).map(Pfn::new).filter(|&pfn| slab_of(pfn) == Some(pfn));
    let size = |head: Pfn| (head.number()..end).take_while(move |&pfn| slab_of(Pfn::new(pfn)) == Some(head));
    let refusal = |pfn| Refusal {
        pfn,
        order: Order::holding(size(pfn).count() as u64 * 4096).unwrap(),
        kind: PageKind::Kernel(KernelUse::Slab),
        reason: RefusalReason::Unmovable(KernelUse::Slab),
    };
    heads.map(refusal).collect()
}

fn specs() -> Vec<CacheSpec> {
    let movable = |size| CacheSpec {
        objects: Objects::Movable,
        ..CacheSpec::new("movable", size)
    };
    std::vec![
        movable(40),
        CacheSpec {
            debug: Debugging::On,
            ..movable(100)
        },
        // Descriptors off the slab.
        CacheSpec {
            align: Alignment::CacheLine,
            ..movable(1000)
        },
        // Slabs of several frames.
        movable(3000),
    ]
}

#[test]
fn objects_move_with_their_contents_and_their_slabs_are_given_back() {
    for spec in specs() {
        let (slabs, cpus) = machine(2, 1, Debugging::Off);
        let owner = Owner::new(&slabs, &cpus[0], &spec, 200);
        // Some are free, some at hand of another CPU.
        let gone: Vec<ObjAddr> = (0..200)
            .step_by(3)
            .filter_map(|number| owner.objects.lock().remove(&number))
            .collect();
        put(&slabs, &cpus[1], &owner.cache, &gone);
        let end = BASE + u32::try_from(slabs.source().used_pages()).unwrap();
        let mut refused = refusals(&slabs, end);
        let mine = |refusal: &&Refusal| slabs.name_of(refusal.pfn) == Some("movable");
        let wanted: u32 = refused
            .iter()
            .filter(mine)
            .map(|refusal| refusal.order.nr_pages())
            .sum();
        assert!(wanted > 1);
        slabs.source().leave_below(end);
        let moved = slabs.move_off(&cpus[0], &[&owner], &mut refused);
        assert!(
            moved.pages >= wanted && !moved.lacks_memory,
            "{moved:?} of {wanted}"
        );
        assert_eq!(refused.iter().filter(mine).count(), 0);
        assert!(
            owner
                .objects
                .lock()
                .values()
                .all(|object| object.gpa() >= u64::from(end) << 12)
        );
        owner.check();
        slabs.validate().unwrap();
        assert!(slabs.next_misuse().is_none());
        owner.free_all(&cpus[0]);
        slabs.destroy(&cpus[0], &owner.cache).unwrap();
        slabs.validate().unwrap();
    }
}

#[test]
fn an_object_in_use_keeps_its_slab_which_serves_again() {
    let (slabs, cpus) = machine(1, 1, Debugging::Off);
    let mut owner = Owner::new(&slabs, &cpus[0], &specs()[0], 150);
    owner.busy = std::vec![70];
    let end = BASE + u32::try_from(slabs.source().used_pages()).unwrap();
    let mut refused = refusals(&slabs, end);
    let before = refused.len();
    slabs.source().leave_below(end);
    let moved = slabs.move_off(&cpus[0], &[&owner], &mut refused);
    assert_eq!((moved.pages as usize, refused.len()), (before - 1, 1));
    owner.check();
    slabs.validate().unwrap();
    // Its other objects can be had again.
    let kept = owner.objects.lock()[&70];
    let more = take(&slabs, &cpus[0], &owner.cache, 300);
    assert!(more.iter().any(|object| object.gpa() >> 12 == kept.gpa() >> 12));
    slabs.validate().unwrap();
    owner.busy.clear();
    put(&slabs, &cpus[0], &owner.cache, &more);
    assert_eq!(slabs.move_off(&cpus[0], &[&owner], &mut refused).pages, 1);
    owner.check();
    slabs.validate().unwrap();
}

#[test]
fn slabs_that_nobody_can_empty_go_once_their_objects_are_free() {
    let (slabs, cpus) = machine(1, 1, Debugging::Off);
    let kept = slabs.kmalloc(&cpus[0], 200, Gfp::KERNEL).unwrap();
    let others: Vec<ObjAddr> = (0..10)
        .map(|_| slabs.kmalloc(&cpus[0], 100, Gfp::KERNEL).unwrap())
        .collect();
    others
        .into_iter()
        .for_each(|object| slabs.kfree(&cpus[0], object).unwrap());
    let end = BASE + u32::try_from(slabs.source().used_pages()).unwrap();
    let mut refused = refusals(&slabs, end);
    slabs.source().leave_below(end);
    assert_eq!(slabs.move_off(&cpus[0], &[], &mut refused).pages, 1);
    assert_eq!(refused.len(), 1);
    assert_eq!(slabs.name_of(refused[0].pfn), Some("kmalloc-256"));
    slabs.validate().unwrap();
    slabs.kfree(&cpus[0], kept).unwrap();
    assert_eq!(slabs.move_off(&cpus[0], &[], &mut refused).pages, 1);
    assert!(refused.is_empty() && slabs.source().used_pages() == 0);
}
