//! The caches of names and inodes over real slabs: what shrinkers give back are frames, the oldest go first, and what is left
//! is right.

use std::boxed::Box;
use std::collections::BTreeSet;
use std::format;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, SpinLock};

use crate::fs::pagefs::{InodeNr, Name};
use crate::fs::{Evict, InodeCache, InodeShrinker, Known, NameCache, Store, per_frame};
use crate::gfp::Gfp;
use crate::migrate::{PageKind, Refusal, RefusalReason};
use crate::page::KernelUse;
use crate::reclaim::Shrinker;
use crate::slab::tests::world::{BASE, TestSlabs, machine};
use crate::slab::{Cache, CacheSpec, Debugging, IsLeaving, MoveObjects, NoObject, ObjAddr, SlabSource};
use crate::{Order, Pfn};

/// Objects in a slab cache of their own; their values are the host's.
struct InSlabs<'a> {
    slabs: &'a TestSlabs,
    cache: Arc<Cache>,
    cpu: SpinLock<Cpu>,
}

impl<'a> InSlabs<'a> {
    fn new<T>(slabs: &'a TestSlabs, cpu: Cpu) -> Self {
        let size = u32::try_from(size_of::<T>()).unwrap();
        Self {
            slabs,
            cache: slabs.create(&CacheSpec::new("objects", size)).unwrap(),
            cpu: SpinLock::new(cpu),
        }
    }
}

struct Object<'a, T> {
    value: Box<T>,
    home: &'a InSlabs<'a>,
    place: ObjAddr,
}

impl<T> Deref for Object<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Object<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Object<'_, T> {
    fn drop(&mut self) {
        let cpu = self.home.cpu.lock();
        self.home.slabs.free(&cpu, &self.home.cache, self.place).unwrap();
    }
}

impl<'a, T: Send> Store<T> for &'a InSlabs<'a> {
    type Box = Object<'a, T>;

    fn store(&self, value: T) -> Option<Object<'a, T>> {
        let place = self
            .slabs
            .alloc(&self.cpu.lock(), &self.cache, Gfp::KERNEL)
            .ok()?;
        Some(Object {
            value: Box::new(value),
            home: self,
            place,
        })
    }

    fn relocate(
        &self,
        cpu: &Cpu,
        object: &mut Object<'a, T>,
        leaving: IsLeaving<'_>,
    ) -> Result<(), NoObject> {
        if leaving(object.place) {
            object.place = self.slabs.relocate(cpu, &self.cache, object.place)?;
        }
        Ok(())
    }

    fn per_frame(&self) -> u32 {
        per_frame::<T>()
    }

    fn frames(&self) -> u64 {
        self.slabs.source().used_pages()
    }

    fn give_back(&self, cpu: &Cpu) {
        self.slabs.shrink(cpu, &self.cache);
    }
}

fn two_cpus() -> (TestSlabs, Cpu, Cpu) {
    let (slabs, mut cpus) = machine(2, 1, Debugging::Off);
    let second = cpus.remove(1);
    assert_eq!(second.id(), CpuId::new(1).unwrap());
    (slabs, cpus.remove(0), second)
}

fn name(number: u32) -> Name {
    Name::new(format!("name{number}").as_bytes()).unwrap()
}

fn inode(number: u32) -> InodeNr {
    InodeNr::new(number).unwrap()
}

#[test]
fn names_that_were_used_last_stay_and_frames_come_back_for_the_others() {
    let (slabs, own, cpu) = two_cpus();
    let store = InSlabs::new::<crate::fs::Dentry>(&slabs, own);
    let cache = NameCache::new(&store);
    for number in 0..4000 {
        let target = match number % 3 {
            0 => Known::Missing,
            _ => Known::Inode(inode(1 + number)),
        };
        cache.enter(InodeNr::ROOT, &name(number), target);
    }
    let stat = cache.stat();
    assert_eq!((stat.entries, stat.negative), (4000, 1334));
    // The first ones are the last that were used.
    for number in 0..100 {
        assert!(cache.lookup(InodeNr::ROOT, &name(number)).is_some());
    }
    let used = slabs.source().used_pages();
    let freed = cache.shrink(&cpu, 8);
    assert!(freed >= 8, "{freed}");
    assert_eq!(slabs.source().used_pages(), used - freed);
    let left = cache.stat();
    assert_eq!(left.entries + left.reclaimed, 4000);
    assert!(left.reclaimed > 0 && left.reclaimed < 3900);
    for number in 0..4000 {
        let known = cache.lookup(InodeNr::ROOT, &name(number));
        let is_old = number >= 100 && u64::from(number) < 100 + left.reclaimed;
        let expected = match number % 3 {
            _ if is_old => None,
            0 => Some(Known::Missing),
            _ => Some(Known::Inode(inode(1 + number))),
        };
        assert_eq!(known, expected, "{number}");
    }
    assert!(cache.freeable_pages() <= slabs.source().used_pages());
    assert!(cache.shrink(&cpu, u64::from(u32::MAX)) > 0);
    assert_eq!((cache.stat().entries, cache.stat().negative), (0, 0));
    assert_eq!(cache.lookup(InodeNr::ROOT, &name(5)), None);
}

#[test]
fn a_name_says_what_was_entered_last_and_nothing_when_there_was_no_memory_for_it() {
    let (slabs, own, _) = two_cpus();
    let store = InSlabs::new::<crate::fs::Dentry>(&slabs, own);
    let cache = NameCache::new(&store);
    let (first, second) = (inode(2), inode(3));
    cache.enter(InodeNr::ROOT, &name(1), Known::Missing);
    cache.enter(InodeNr::ROOT, &name(1), Known::Inode(first));
    cache.enter(second, &name(1), Known::Inode(second));
    assert_eq!(cache.lookup(InodeNr::ROOT, &name(1)), Some(Known::Inode(first)));
    cache.forget_directory(second);
    assert_eq!(cache.lookup(second, &name(1)), None);
    // A stale entry would lead to a file that is not there any more.
    slabs.source().fail_after(0);
    let mut number = 2;
    while cache.lookup(InodeNr::ROOT, &name(1)).is_some() {
        cache.enter(InodeNr::ROOT, &name(number), Known::Missing);
        cache.enter(InodeNr::ROOT, &name(1), Known::Inode(second));
        number += 1;
        assert!(number < 1000, "memory never ends");
    }
}

/// Lets go of all but a few.
struct Except(BTreeSet<InodeNr>);

impl Evict<u32> for Except {
    fn evict(&self, _: &Cpu, number: InodeNr, kept: &u32) -> bool {
        assert_eq!(*kept, number.number() * 3);
        !self.0.contains(&number)
    }
}

#[test]
fn an_inode_goes_when_nobody_holds_it_and_what_belongs_to_it_can_go() {
    let (slabs, own, cpu) = two_cpus();
    let store = InSlabs::new::<crate::fs::Node<u32>>(&slabs, own);
    let cache = InodeCache::new(&store);
    for number in 1..1000 {
        assert_eq!(cache.hold(inode(number)), None);
        assert!(cache.add(inode(number), number * 3));
        assert_eq!(cache.hold(inode(number)), Some(number * 3));
        assert_eq!(cache.let_go(inode(number)), Some(1));
        if number < 900 {
            assert_eq!(cache.let_go(inode(number)), Some(0));
        }
    }
    assert_eq!((cache.stat().inodes, cache.stat().held), (999, 100));
    let shrinker = InodeShrinker {
        cache: &cache,
        evict: Except((1..50).map(inode).collect()),
    };
    let used = slabs.source().used_pages();
    let freed = shrinker.shrink(&cpu, 10_000);
    assert!(freed > 0 && slabs.source().used_pages() == used - freed);
    let mut left = Vec::new();
    cache.for_each(|number, _| left.push(number.number()));
    left.sort_unstable();
    let expected: Vec<u32> = (1..1000)
        .filter(|number| *number < 50 || *number >= 900)
        .collect();
    assert_eq!(left, expected);
    assert_eq!(cache.let_go(inode(910)), Some(0));
    assert_eq!((cache.holders(inode(910)), cache.holders(inode(920))), (0, 1));
    assert_eq!(cache.remove(inode(920)), Some(2760));
    assert_eq!(
        (cache.peek(inode(920)), cache.peek(inode(930))),
        (None, Some(2790))
    );
    assert_eq!(cache.let_go(inode(910)), None, "it was let go of already");
}

impl<'a> MoveObjects for NameCache<&'a InSlabs<'a>> {
    fn cache(&self) -> Option<&Cache> {
        Some(&self.store().cache)
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        Self::move_objects(self, cpu, is_leaving);
        Ok(())
    }
}

impl<'a> MoveObjects for InodeCache<u32, &'a InSlabs<'a>> {
    fn cache(&self) -> Option<&Cache> {
        Some(&self.store().cache)
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        Self::move_objects(self, cpu, is_leaving)
    }
}

/// The slabs among the frames below a number, as migration refuses them.
fn slabs_below(slabs: &TestSlabs, end: u32) -> Vec<Refusal> {
    let heads = (0..end)
        .map(Pfn::new)
        .filter(|&pfn| slabs.source().slab_of(pfn) == Some(pfn));
    let refusal = |pfn| Refusal {
        pfn,
        order: Order::ZERO,
        kind: PageKind::Kernel(KernelUse::Slab),
        reason: RefusalReason::Unmovable(KernelUse::Slab),
    };
    heads.map(refusal).collect()
}

#[test]
fn names_and_inodes_leave_their_slabs_and_are_found_as_before() {
    let (slabs, mut cpus) = machine(3, 1, Debugging::Off);
    let cpu = cpus.remove(2);
    let names = InSlabs::new::<crate::fs::Dentry>(&slabs, cpus.remove(1));
    let inodes = InSlabs::new::<crate::fs::Node<u32>>(&slabs, cpus.remove(0));
    let (names, inodes) = (NameCache::new(&names), InodeCache::new(&inodes));
    for number in 1..2000 {
        names.enter(InodeNr::ROOT, &name(number), Known::Inode(inode(number)));
        assert!(inodes.add(inode(number), number * 3));
        if number % 4 != 0 {
            assert_eq!(inodes.let_go(inode(number)), Some(0));
        }
    }
    // Slabs with objects in between that are free, and some at hand.
    names.give_up(300);
    let used = slabs.source().used_pages();
    let end = BASE + u32::try_from(used / 2).unwrap();
    let mut refused = slabs_below(&slabs, end);
    let wanted = refused.len();
    assert!(wanted >= 20, "{wanted}");
    slabs.source().leave_below(end);
    let moved = slabs.move_off(&cpu, &[&names, &inodes], &mut refused);
    assert_eq!(
        (moved.pages as usize, moved.lacks_memory),
        (wanted, false),
        "{refused:?}"
    );
    assert!(refused.is_empty() && slabs_below(&slabs, end).is_empty());
    slabs.validate().unwrap();
    assert_eq!(
        (names.stat().entries, inodes.stat().inodes, inodes.stat().held),
        (1699, 1999, 499)
    );
    for number in 301..2000 {
        assert_eq!(
            names.lookup(InodeNr::ROOT, &name(number)),
            Some(Known::Inode(inode(number)))
        );
    }
    for number in 1..2000 {
        assert_eq!(inodes.peek(inode(number)), Some(number * 3));
        assert_eq!(inodes.holders(inode(number)), u32::from(number % 4 == 0));
    }
    drop((names, inodes));
    slabs.validate().unwrap();
}

#[test]
fn without_memory_names_are_given_up_and_inodes_stay() {
    let (slabs, mut cpus) = machine(3, 1, Debugging::Off);
    let cpu = cpus.remove(2);
    let names = InSlabs::new::<crate::fs::Dentry>(&slabs, cpus.remove(1));
    let inodes = InSlabs::new::<crate::fs::Node<u32>>(&slabs, cpus.remove(0));
    let (names, inodes) = (NameCache::new(&names), InodeCache::new(&inodes));
    for number in 1..500 {
        names.enter(InodeNr::ROOT, &name(number), Known::Missing);
        assert!(inodes.add(inode(number), number));
    }
    slabs.source().fail_after(0);
    let all = BASE + u32::try_from(slabs.source().used_pages()).unwrap();
    let mut refused = slabs_below(&slabs, all);
    let before = refused.len();
    let moved = slabs.move_off(&cpu, &[&names, &inodes], &mut refused);
    assert!(moved.lacks_memory && moved.pages > 0 && !refused.is_empty());
    assert_eq!(refused.len() + moved.pages as usize, before);
    slabs.validate().unwrap();
    let left = names.stat();
    assert_eq!((left.entries, left.reclaimed), (0, 499));
    for number in 1..500 {
        assert_eq!(inodes.peek(inode(number)), Some(number));
        assert_eq!(names.lookup(InodeNr::ROOT, &name(number)), None);
    }
    assert!(
        refused
            .iter()
            .all(|refusal| slabs.name_of(refusal.pfn) == Some("objects"))
    );
}
