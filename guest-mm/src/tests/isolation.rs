//! Blocks that nobody can allocate from: whatever is freed on them stays there, by whichever way it comes back.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::BlockIndex;
use crate::compact::Source;
use crate::mm::Reserve;
use crate::page::Head;
use crate::pagetable::translate;
use crate::pcp::OwnList;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, load, machine, remove, store};
use crate::tests::phys_model::{descriptors, one_cpu, order, plug, small_memory};
use crate::{
    Access, Backing, FrameState, Gfp, HugeAdvice, MapRequest, Order, Pfn, PhysicalMemory, Place, SpaceId,
    ZoneKind,
};

const LEAVING: BlockIndex = BlockIndex(0);

/// All that can be had, in pieces of every size, for programs and for the kernel.
fn take_everything(memory: &PhysicalMemory<'_>, cpu: &Cpu) -> Vec<Pfn> {
    let mut taken = Vec::new();
    for gfp in [Gfp::USER, Gfp::HIGHUSER, Gfp::KERNEL, Gfp::ATOMIC] {
        for size in [10, 9, 3, 0].map(order) {
            taken.extend(core::iter::from_fn(|| memory.alloc_pages(cpu, gfp, size).ok()));
        }
    }
    taken
}

fn assert_stays(memory: &PhysicalMemory<'_>, pfn: Pfn) {
    let state = memory.frame_state(pfn);
    assert!(matches!(state, FrameState::Isolated(_)), "{pfn} is {state:?}");
}

#[test]
fn what_is_freed_on_an_isolated_block_is_at_hand_of_no_cpu_and_given_to_nobody() {
    for kind in [ZoneKind::Movable, ZoneKind::Normal] {
        let (pages, cpu) = (descriptors(2 * 1024), one_cpu());
        let memory = small_memory(&pages, 1024, 2);
        // In the kernel's zone boot memory is rather taken.
        let _others = match kind {
            ZoneKind::Normal => take_everything(&memory, &cpu),
            _ => Vec::new(),
        };
        plug(&memory, LEAVING, kind);
        let taken = [9, 3, 0, 0].map(|size| {
            let mut frames = core::iter::from_fn(|| memory.alloc_pages(&cpu, Gfp::USER, order(size)).ok());
            let pfn = frames.find(|&pfn| memory.block_of(pfn) == Some(LEAVING));
            (pfn.expect("there is room on the block"), order(size))
        });
        plug(&memory, BlockIndex(1), kind);
        let token = memory.isolate(LEAVING).unwrap();
        for (pfn, size) in taken {
            let before = memory.used_pages(&token);
            memory.free_pages(&cpu, pfn).unwrap();
            assert_stays(&memory, pfn);
            assert_eq!(memory.used_pages(&token), before - size.nr_pages());
            memory.validate().unwrap();
        }
        let rest = take_everything(&memory, &cpu);
        let is_leaving = |pfn: &&Pfn| memory.block_of(**pfn) == Some(LEAVING);
        assert_eq!(rest.iter().find(is_leaving), None, "{}", kind.name());
        assert!(
            rest.iter()
                .any(|&pfn| memory.block_of(pfn) == Some(BlockIndex(1))),
            "a test of nothing"
        );
        memory.validate().unwrap();
        memory.offline(token).unwrap();
        memory.validate().unwrap();
    }
}

#[test]
fn a_frame_that_was_just_put_on_a_list_when_its_block_was_isolated_does_not_keep_the_block() {
    for size in [Order::ZERO, Order::PAGEBLOCK] {
        let (pages, cpu) = (descriptors(1024), one_cpu());
        let memory = small_memory(&pages, 1024, 1);
        plug(&memory, LEAVING, ZoneKind::Movable);
        let pfn = memory.alloc_pages(&cpu, Gfp::USER, size).unwrap();
        let token = memory.isolate(LEAVING).unwrap();
        // As if its owner had looked just before, and nobody asks for memory from then on.
        let zone = memory.zone_of(pfn).unwrap();
        let list = OwnList::of(zone.lists().this(&cpu), size, Gfp::USER.mobility());
        memory.page(pfn).unwrap().set_head(Head::cached(size));
        assert!(list.unwrap().push(pfn));
        assert_eq!(memory.used_pages(&token), size.nr_pages());
        memory.offline(token).unwrap();
        memory.validate().unwrap();
    }
}

/// A page, alone in a pageblock that compaction has.
fn compacted<'m>(memory: &'m PhysicalMemory<'_>, cpu: &Cpu) -> (Pfn, Source<'m>) {
    let pfn = memory.alloc_pages(cpu, Gfp::USER, Order::ZERO).unwrap();
    memory.drain_all();
    let zone = memory.zone_of(pfn).unwrap();
    let tag = memory.table.tags.at(pfn).unwrap();
    let source = memory.withdraw_at(zone, tag, pfn);
    (pfn, source.expect("it is partly used"))
}

#[test]
fn a_pageblock_that_compaction_lets_go_of_on_an_isolated_block_stays_withdrawn() {
    for is_emptied in [false, true] {
        let (pages, cpu) = (descriptors(1024), one_cpu());
        let memory = small_memory(&pages, 1024, 1);
        plug(&memory, LEAVING, ZoneKind::Movable);
        let (pfn, source) = compacted(&memory, &cpu);
        let token = memory.isolate(LEAVING).unwrap();
        memory.validate().unwrap();
        if is_emptied {
            memory.free_pages(&cpu, pfn).unwrap();
            memory.validate().unwrap();
        }
        drop(source);
        memory.validate().unwrap();
        if !is_emptied {
            memory.free_pages(&cpu, pfn).unwrap();
        }
        assert_stays(&memory, pfn);
        let rest = take_everything(&memory, &cpu);
        assert!(rest.iter().all(|&pfn| memory.block_of(pfn).is_none()));
        memory.offline(token).unwrap();
        memory.validate().unwrap();
    }
}

#[test]
fn a_pageblock_that_compaction_has_is_not_given_out_either_when_its_block_is_back_in_use() {
    let (pages, cpu) = (descriptors(1024), one_cpu());
    let memory = small_memory(&pages, 1024, 1);
    plug(&memory, LEAVING, ZoneKind::Movable);
    let (pfn, source) = compacted(&memory, &cpu);
    let token = memory.isolate(LEAVING).unwrap();
    memory.undo(token);
    memory.validate().unwrap();
    let pageblock = |pfn: Pfn| pfn.align_down(Order::PAGEBLOCK);
    let rest = take_everything(&memory, &cpu);
    assert!(
        rest.iter().any(|&pfn| memory.block_of(pfn) == Some(LEAVING)),
        "a test of nothing"
    );
    assert!(rest.iter().all(|&other| pageblock(other) != pageblock(pfn)));
    drop(source);
    memory.validate().unwrap();
    let now = take_everything(&memory, &cpu);
    assert!(now.iter().any(|&other| pageblock(other) == pageblock(pfn)));
    memory.free_pages(&cpu, pfn).unwrap();
    memory.validate().unwrap();
}

fn frame_of(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    Pfn::containing(translate(&mm.frames, root, va, Access::Read).unwrap().gpa).unwrap()
}

#[test]
fn what_a_program_gives_back_on_an_isolated_block_no_other_one_gets() {
    machine!(mm, cpu, 512, 3);
    let [id, other] = [(); 2].map(|()| mm.create_space(&cpu, &[]).unwrap());
    let va = mm.mmap(id, &anonymous(64 * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..64 {
        store(&mm, &cpu, id, va + page * 4096, page + 1).unwrap();
    }
    let leaving = mm.phys.block_of(frame_of(&mm, id, va)).unwrap();
    let mut token = mm.phys.isolate(leaving).unwrap();
    let given: Vec<Pfn> = (0..32).map(|page| frame_of(&mm, id, va + page * 4096)).collect();
    mm.munmap(&cpu, id, va, 32 * 4096).unwrap();
    for pfn in given {
        assert_eq!(mm.phys.block_of(pfn), Some(leaving));
        assert_stays(mm.phys, pfn);
    }
    assert_eq!(mm.phys.used_pages(&token), 32);
    // As many as there are outside, and more.
    let theirs = mm.mmap(other, &anonymous(16 * MIB, HugeAdvice::NoHuge)).unwrap();
    let stored = (0..4096).take_while(|page| store(&mm, &cpu, other, theirs + page * 4096, *page).is_ok());
    let stored = stored.count() as u64;
    assert!((1024..4096).contains(&stored), "{stored} pages");
    for page in 0..stored {
        assert_ne!(
            mm.phys.block_of(frame_of(&mm, other, theirs + page * 4096)),
            Some(leaving)
        );
    }
    mm.validate().unwrap();
    mm.munmap(&cpu, other, theirs, 4 * MIB).unwrap();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 32);
    remove(&mut mm, token);
    for page in 32..64 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    mm.validate().unwrap();
}

/// A program that stores to one reserved huge page; it and the address of the page.
fn reserved(mm: &TestMm<'_>, cpu: &Cpu) -> (SpaceId, u64) {
    let id = mm.create_space(cpu, &[]).unwrap();
    let request = MapRequest {
        len: 2 * MIB,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::HugeTlb(Reserve::Held),
    };
    let va = mm.mmap(id, &request).unwrap();
    store(mm, cpu, id, va, 7).unwrap();
    (id, va)
}

#[test]
fn a_reserved_huge_page_that_came_back_to_the_pool_on_an_isolated_block_is_the_last_to_be_given_out() {
    machine!(mm, cpu, 512, 4);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 2), 2);
    let (first, va) = reserved(&mm, &cpu);
    let pfn = frame_of(&mm, first, va);
    let token = mm.phys.isolate(mm.phys.block_of(pfn).unwrap()).unwrap();
    mm.destroy_space(&cpu, first).unwrap();
    assert_eq!(mm.phys.huge_pool().free, 2);
    let (second, va) = reserved(&mm, &cpu);
    assert_ne!(frame_of(&mm, second, va), pfn);
    // A promise is kept all the same.
    let (third, va) = reserved(&mm, &cpu);
    assert_eq!(frame_of(&mm, third, va), pfn);
    mm.validate().unwrap();
    mm.phys.undo(token);
}
