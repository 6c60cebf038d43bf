//! The order of Linux 2.4: ages, three lists, two phases.

use guest_sync::Cpu;

use crate::mm::Shrunk;
use crate::tests::machine::{TestMm, load, machine};
use crate::tests::swap::{PAGES, load_swapped, program, work};
use crate::{Access, LruList, NodeId, Pfn, SpaceId, Zone, ZoneKind};

fn movable<'a>(mm: &'a TestMm<'_>) -> &'a Zone {
    mm.phys.zone(NodeId::ZERO, ZoneKind::Movable)
}

fn lists(mm: &TestMm<'_>) -> [u64; 3] {
    [LruList::Active, LruList::Inactive, LruList::Clean].map(|list| movable(mm).lru_len(list))
}

/// The frame that a program's address is mapped to.
pub(super) fn pfn_at(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    let found = crate::pagetable::translate(&mm.frames, root, va, Access::Read);
    Pfn::containing(found.unwrap().gpa).unwrap()
}

/// Has the zones looked at as when memory is short for long.
fn launder(mm: &TestMm<'_>, cpu: &Cpu) -> u32 {
    let mut gone = 0;
    for zone in mm.phys.populated_zones() {
        let shrunk = mm.launder_zone(cpu, zone, 32);
        gone += shrunk.freed + shrunk.written;
        mm.validate().unwrap();
    }
    gone
}

#[test]
fn pages_grow_old_are_unmapped_washed_and_freed() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    let nr = u32::try_from(PAGES).unwrap();
    let page = mm.phys.page(pfn_at(&mm, id, va)).unwrap();
    // Just used: 3, then half of it, then none of it.
    assert_eq!((mm.swap_out(&cpu, nr), page.age()), (0, 3));
    assert_eq!((mm.swap_out(&cpu, nr), page.age()), (0, 1));
    assert_eq!(mm.swap_out(&cpu, nr), nr, "nobody has used them");
    mm.validate().unwrap();
    assert_eq!(lists(&mm), [0, PAGES, 0]);
    assert_eq!(mm.space(id).unwrap().rss_pages(), 0);
    // They were never written: that comes with the second round.
    let mut shrunk = Shrunk::default();
    mm.page_launder(&cpu, movable(&mm), nr, &mut shrunk);
    assert_eq!((shrunk.written, shrunk.freed), (nr, 0));
    work(&mm, &cpu, &disk);
    assert_eq!(lists(&mm), [0, 0, 0], "free when they have arrived");
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    // What came back is clean: washed without a write, and freed when it is wanted.
    let written = mm.phys.stats().pswpout;
    while mm.space(id).unwrap().rss_pages() > 0 {
        mm.swap_out(&cpu, nr);
    }
    let mut shrunk = Shrunk::default();
    mm.page_launder(&cpu, movable(&mm), 2 * nr, &mut shrunk);
    assert_eq!((shrunk.written, lists(&mm)), (0, [0, 0, PAGES]));
    mm.validate().unwrap();
    // One of them is wanted after all.
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va), Ok(1));
    let mut shrunk = Shrunk::default();
    mm.reclaim_clean(&cpu, movable(&mm), nr, &mut shrunk);
    mm.validate().unwrap();
    assert_eq!((shrunk.freed, shrunk.activated), (nr - 1, 1));
    assert_eq!(lists(&mm), [1, 0, 0]);
    assert_eq!(mm.phys.stats().pswpout, written);
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + 4096), Ok(2));
}

#[test]
fn a_page_that_is_used_again_and_again_stays_while_the_others_go() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    for _ in 0..30 {
        // Hardware sets the accessed bit when it has no translation at hand.
        mm.fault(&cpu, id, va, Access::Read).unwrap();
        load(&mm, &cpu, id, va).unwrap();
        launder(&mm, &cpu);
        work(&mm, &cpu, &disk);
    }
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (1, PAGES - 1));
    assert_eq!(load(&mm, &cpu, id, va), Ok(1));
    for page in 1..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    mm.validate().unwrap();
}
