//! The memory of a program moves to another node: reserved huge pages whole, and what stays is counted.

use guest_sync::Cpu;

use crate::host::{HostFrames, HostMmu};
use crate::migrate::{NodeMove, Stays};
use crate::mm::Reserve;
use crate::pagetable::translate;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, load, store};
use crate::tests::nodes::{EACH, node, node_of, pages, three_nodes};
use crate::tests::phys_model::range;
use crate::{Access, Backing, Gfp, HugeAdvice, MapRequest, Mm, NodeId, Order, Pfn, Place, SpaceId};

/// Moves all that can; how many small and huge pages that was, and what stays.
fn move_all(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, (from, to): (NodeId, NodeId)) -> (u32, u32, Stays) {
    let mut moving = NodeMove::new(id, from, to);
    let (mut small, mut huge) = (0, 0);
    while let Some(report) = mm.migrate_node_batch(cpu, &mut moving, 16) {
        assert!(report.refused.is_empty(), "{report:?}");
        (small, huge) = (small + report.moved_small, huge + report.moved_huge);
        mm.validate().unwrap();
    }
    (small, huge, moving.stays())
}

/// Takes every free 2 MiB frame of a node. Room for small pages is left where there are some.
fn take_huge_frames(mm: &TestMm<'_>, cpu: &Cpu, of: NodeId) {
    let gfp = Gfp::USER.with(Gfp::THIS_NODE);
    while mm.phys.alloc_pages_node(cpu, of, gfp, Order::PAGEBLOCK).is_ok() {}
}

#[test]
fn reserved_huge_pages_move_whole_where_there_is_room_and_what_stays_is_counted() {
    let pages = pages(3 * EACH);
    let (memory, cpus) = three_nodes(&pages);
    let mut frames = HostFrames::new();
    frames.plug(range(0, 3 * EACH));
    let mm: TestMm<'_> = Mm::new(&memory, frames, HostMmu::new());
    let cpu = &cpus[0];
    assert_eq!(mm.set_nr_huge_pages(cpu, 3), 3);
    let id = mm.create_space(cpu, &[]).unwrap();
    let reserved = MapRequest {
        len: 2 * MIB,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::HugeTlb(Reserve::Held),
    };
    let huge = mm.mmap(id, &reserved).unwrap();
    let small = mm.mmap(id, &anonymous(8 * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..8 {
        store(&mm, cpu, id, small + page * 4096, page).unwrap();
    }
    for page in 0..512 {
        store(&mm, cpu, id, huge + page * 4096, !page).unwrap();
    }
    let huge_is_on = || {
        let root = mm.space(id).unwrap().root();
        let found = translate(&mm.frames, root, huge, Access::Read).unwrap();
        node_of(&memory, Pfn::containing(found.gpa).unwrap())
    };
    assert_eq!(huge_is_on(), 0);
    let (there, back) = ((node(0), node(2)), (node(2), node(0)));
    assert_eq!(move_all(&mm, cpu, id, there), (8, 1, Stays::default()));
    assert_eq!((huge_is_on(), mm.phys.huge_pool().total), (2, 3));

    // No place for it: it stays whole, and the small pages go all the same.
    take_huge_frames(&mm, cpu, node(0));
    let no_huge_frame = Stays {
        no_huge_frame: 512,
        ..Stays::default()
    };
    assert_eq!(move_all(&mm, cpu, id, back), (8, 0, no_huge_frame));
    assert_eq!(huge_is_on(), 2);

    // What a child has too.
    let child = mm.fork(cpu, id).unwrap();
    let shared = Stays {
        shared: 8,
        most_mappings: 2,
        no_huge_frame: 0,
    };
    assert_eq!(move_all(&mm, cpu, id, there), (0, 0, shared));
    mm.destroy_space(cpu, child).unwrap();
    for page in 0..8 {
        assert_eq!(load(&mm, cpu, id, small + page * 4096), Ok(page));
    }
    for page in 0..512 {
        assert_eq!(load(&mm, cpu, id, huge + page * 4096), Ok(!page));
    }
    mm.destroy_space(cpu, id).unwrap();
    mm.validate().unwrap();
}
