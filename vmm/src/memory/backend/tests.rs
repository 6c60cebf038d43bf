//! What plugging and unplugging do to host memory, on every backing.

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use devices::mem::UnpluggedMemory;

use super::super::testing::with_huge_pages;
use super::super::testing::{BLOCK, BOOT, START, fill, is_zero, on_every_backing, plan, ram, region, small};
use super::super::{GuestRam, RegionLayout, RegionPlan, Resident};
use super::*;
use crate::machine::layout::{GIB, MIB};
use crate::spec::{Backing, HugePage};

fn run(first: u64, count: u64) -> BlockRun {
    BlockRun::new(first, count).unwrap()
}

/// The runs of plugged blocks: first block, and first behind the last.
fn runs(region: &Region) -> Vec<(u64, u64)> {
    let runs = region.plugged().runs();
    runs.iter().map(|run| (run.start, run.end)).collect()
}

fn resident(ram: &GuestRam) -> u64 {
    Resident::measure(ram).unwrap().guest_bytes
}

#[test]
fn an_unplugged_block_is_refused_before_any_access() {
    let ram = small();
    let memory = ram.device_view();
    assert!(memory.read_obj::<u64>(GuestAddress(START)).is_err());
    assert!(memory.write_obj(7u64, GuestAddress(START + 5 * BLOCK)).is_err());
    assert!(!memory.check_range(GuestAddress(START), 1, Permissions::Read));
}

#[test]
fn a_plugged_block_is_served_and_its_neighbours_are_not() {
    let ram = small();
    let mut backend = ram.backend(0).unwrap();
    backend.plug_blocks(2, 2).unwrap();
    let memory = ram.device_view();
    let first = GuestAddress(START + 2 * BLOCK);
    memory.write_obj(0x1122_3344_5566_7788u64, first).unwrap();
    assert_eq!(memory.read_obj::<u64>(first).unwrap(), 0x1122_3344_5566_7788);
    // Across the border of two plugged blocks, but not across the border to an unplugged one.
    let across = |border: u64| memory.write_obj(1u64, GuestAddress(START + border * BLOCK - 4));
    assert!(across(3).is_ok());
    assert!(across(4).is_err());
    assert!(across(2).is_err());
}

#[test]
fn a_range_from_ram_into_the_region_needs_the_blocks_too() {
    let layout = RegionLayout {
        start: BOOT,
        size: 2 * BLOCK,
        block_size: BLOCK,
    };
    let ram = ram(Backing::Anonymous, &[layout.into()]);
    let across = GuestAddress(BOOT - 4);
    assert!(ram.device_view().write_obj(1u64, across).is_err());
    ram.backend(0).unwrap().plug_blocks(0, 1).unwrap();
    assert!(ram.device_view().write_obj(1u64, across).is_ok());
}

#[test]
fn unplugging_gives_resident_memory_back_and_replugging_gives_zeros_on_every_backing() {
    on_every_backing(8 * BLOCK, |backing| {
        let ram = ram(Backing::Anonymous, &[plan(backing, 8)]);
        let mut backend = ram.backend(0).unwrap();
        backend.plug_blocks(0, 6).unwrap();
        fill(&ram, START, 4 * BLOCK);
        let filled = resident(&ram);
        assert!(filled >= 4 * BLOCK, "{backing}: {filled} bytes resident");

        let discarded = backend.unplug_blocks(0, 4).unwrap();
        let whole = Discarded {
            claimed: 4 * BLOCK,
            shown: 4 * BLOCK,
        };
        assert_eq!(discarded, whole, "{backing}");
        assert_eq!(region(&ram).account().discarded, whole, "{backing}");
        assert!(ram.device_view().read_obj::<u8>(GuestAddress(START)).is_err());
        let emptied = resident(&ram);
        assert!(
            emptied <= filled - 4 * BLOCK,
            "{backing}: {emptied} bytes resident after unplug, {filled} before"
        );

        backend.plug_blocks(0, 4).unwrap();
        assert!(is_zero(&ram, START, 6 * BLOCK), "{backing}");
    });
}

#[test]
fn blocks_that_the_guest_touched_in_part_are_all_shown_free() {
    on_every_backing(8 * BLOCK, |backing| {
        let ram = ram(Backing::Anonymous, &[plan(backing, 8)]);
        let mut backend = ram.backend(0).unwrap();
        backend.plug_blocks(0, 8).unwrap();
        for block in [1, 2, 5] {
            fill(&ram, START + block * BLOCK + MIB, 8192);
        }
        // What a balloon has taken is not there any more when the block goes.
        let _ = ram.discard(START + 5 * BLOCK, BLOCK).unwrap();
        for (first, count) in [(2, 4), (0, 2), (6, 2)] {
            let discarded = backend.unplug_blocks(first, count).unwrap();
            assert_eq!(discarded.shown, count * BLOCK, "{backing}, from block {first} on");
        }
    });
}

#[test]
fn blocks_outside_the_region_are_refused() {
    let ram = small();
    let mut backend = ram.backend(0).unwrap();
    assert!(backend.plug_blocks(7, 2).is_err());
    assert!(backend.unplug_blocks(u64::MAX, 2).is_err());
    assert_eq!(region(&ram).plugged().snapshot(), vec![false; 8]);
}

#[test]
fn a_block_is_found_by_any_address_in_it() {
    let ram = small();
    let region = region(&ram);
    assert_eq!(region.block_at(START), Some(0));
    assert_eq!(region.block_at(START + 3 * BLOCK - 1), Some(2));
    assert_eq!(region.block_at(START + 8 * BLOCK), None);
    assert_eq!(region.block_at(START - 1), None);
}

#[test]
fn each_of_several_regions_has_its_own_blocks() {
    let first = plan(Backing::Anonymous, 8);
    let second = RegionPlan {
        layout: RegionLayout {
            start: START + GIB,
            size: 4 * 4 * BLOCK,
            block_size: 4 * BLOCK,
        },
        ..plan(Backing::Memfd, 0)
    };
    let ram = ram(Backing::Anonymous, &[first, second]);
    ram.backend(1).unwrap().plug_blocks(1, 1).unwrap();
    assert!(ram.backend(2).is_none());
    assert_eq!(runs(&ram.regions()[0]), []);
    assert_eq!(runs(&ram.regions()[1]), [(1, 2)]);
    let inside = START + GIB + 4 * BLOCK;
    fill(&ram, inside, 4 * BLOCK);
    assert!(
        ram.device_view()
            .write_obj(1u8, GuestAddress(inside + 4 * BLOCK))
            .is_err()
    );
    assert!(
        ram.device_view()
            .write_obj(1u8, GuestAddress(START + BLOCK))
            .is_err()
    );
    let slots: Vec<_> = ram
        .plugged_slots()
        .iter()
        .map(|slot| (slot.gpa, slot.size))
        .collect();
    assert_eq!(slots, [(inside, 4 * BLOCK)]);
    let whole: Vec<_> = ram.region_slots().iter().map(|slot| slot.gpa).collect();
    assert_eq!(whole, [START, START + GIB]);
}

#[test]
fn populated_blocks_are_resident_before_anybody_touches_them() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for (pages, expected) in [(PageSupply::OnTouch, 0), (PageSupply::AtPlug, 3 * BLOCK)] {
            let ram = ram(
                Backing::Anonymous,
                &[RegionPlan {
                    pages,
                    ..plan(backing, 8)
                }],
            );
            ram.backend(0).unwrap().plug_blocks(1, 3).unwrap();
            assert_eq!(resident(&ram), expected, "{backing}, {pages:?}");
        }
    }
}

#[test]
fn a_block_larger_than_the_hosts_memory_is_not_populated_and_the_guest_told_to_wait() {
    let block_size: u64 = 1 << 46;
    let layout = RegionLayout {
        start: block_size,
        size: block_size,
        block_size,
    };
    let pages = PageSupply::AtPlug;
    let ram = ram(
        Backing::Anonymous,
        &[RegionPlan {
            pages,
            ..layout.into()
        }],
    );
    let mut backend = ram.backend(0).unwrap();
    assert!(matches!(backend.plug(run(0, 1)), Err(BackendError::Busy)));
    assert_eq!(region(&ram).account().busy_memory, 1);
    assert!(!region(&ram).plugged().is_plugged(0));
    assert!(
        ram.device_view()
            .read_obj::<u8>(GuestAddress(block_size))
            .is_err()
    );
    assert_eq!(resident(&ram), 0);
}

#[test]
fn a_plug_without_enough_huge_pages_is_busy_until_there_are() {
    with_huge_pages(HugePage::Mib2, 5, || {
        let backing = Backing::Hugetlbfs(HugePage::Mib2);
        let ram = ram(Backing::Anonymous, &[plan(backing, 8)]);
        let mut backend = ram.backend(0).unwrap();
        backend.plug(run(0, 3)).unwrap();
        fill(&ram, START, 3 * BLOCK);
        assert!(matches!(backend.plug(run(3, 3)), Err(BackendError::Busy)));
        assert_eq!(region(&ram).account().busy_memory, 1);
        assert_eq!(runs(region(&ram)), [(0, 3)]);
        // What was got half-way is given back, and not counted as the guest's.
        assert_eq!(resident(&ram), 3 * BLOCK);
        assert_eq!(region(&ram).account().discarded, Discarded::default());

        backend.unplug(run(0, 2)).unwrap();
        backend.plug(run(3, 4)).unwrap();
        assert!(is_zero(&ram, START + 3 * BLOCK, 4 * BLOCK));
        assert_eq!(resident(&ram), 5 * BLOCK);
    });
}

#[test]
#[ignore = "needs a free page of 1 GiB, which few machines still have: with the full matrix"]
fn blocks_of_one_gibibyte_pages_come_and_go() {
    with_huge_pages(HugePage::Gib1, 1, || {
        let layout = RegionLayout {
            start: START,
            size: 2 * GIB,
            block_size: GIB,
        };
        let backing = Backing::Hugetlbfs(HugePage::Gib1);
        let ram = ram(
            Backing::Anonymous,
            &[RegionPlan {
                backing,
                ..layout.into()
            }],
        );
        let mut backend = ram.backend(0).unwrap();
        backend.plug(run(1, 1)).unwrap();
        fill(&ram, START + GIB, MIB);
        assert!(matches!(backend.plug(run(0, 1)), Err(BackendError::Busy)));
        assert_eq!(backend.unplug_blocks(1, 1).unwrap().shown, GIB);
        backend.plug(run(0, 1)).unwrap();
        assert!(is_zero(&ram, START, MIB));
    });
}

/// How the kernel has the page at `gpa` mapped, as in `/proc/self/maps`.
fn protection(ram: &GuestRam, gpa: u64) -> String {
    let slot = ram.region_slots()[0];
    let hva = slot.hva + (gpa - slot.gpa);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut lines = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        (number(start)?..number(end)?)
            .contains(&hva)
            .then(|| rest[..4].to_owned())
    });
    lines.next().unwrap()
}

#[test]
fn the_host_protects_unplugged_blocks_as_the_policy_says() {
    for (unplugged, unplugged_as) in [
        (UnpluggedMemory::Inaccessible, "---p"),
        (UnpluggedMemory::Readable, "r--p"),
    ] {
        let ram = ram(
            Backing::Anonymous,
            &[RegionPlan {
                unplugged,
                ..plan(Backing::Anonymous, 8)
            }],
        );
        let mut backend = ram.backend(0).unwrap();
        assert_eq!(protection(&ram, START + BLOCK), unplugged_as);
        backend.plug_blocks(1, 1).unwrap();
        assert_eq!(protection(&ram, START + BLOCK), "rw-p");
        fill(&ram, START + BLOCK, BLOCK);
        let _ = backend.unplug_blocks(1, 1).unwrap();
        assert_eq!(protection(&ram, START + BLOCK), unplugged_as);
        assert_eq!(resident(&ram), 0);
    }
}

#[test]
fn a_pinned_block_is_busy_and_stays_until_its_last_pin_is_gone() {
    let ram = small();
    let mut backend = ram.backend(0).unwrap();
    backend.plug(run(0, 8)).unwrap();
    let memory = ram.device_view();
    // The end of block 2 and the start of block 3.
    let first = memory.pin(GuestAddress(START + 3 * BLOCK - 512), 1024).unwrap();
    let second = memory.pin(GuestAddress(START + 3 * BLOCK), 4096).unwrap();
    assert_eq!(region(&ram).pinned_blocks(), 2);
    fill(&ram, START + 2 * BLOCK, 2 * BLOCK);

    assert!(matches!(backend.unplug(run(2, 1)), Err(BackendError::Busy)));
    assert!(matches!(backend.unplug(run(0, 8)), Err(BackendError::Busy)));
    assert_eq!(region(&ram).account().busy_pinned, 2);
    assert_eq!(runs(region(&ram)), [(0, 8)]);
    backend.unplug(run(0, 2)).unwrap();
    backend.unplug(run(4, 4)).unwrap();

    drop(first);
    backend.unplug(run(2, 1)).unwrap();
    assert!(matches!(backend.unplug(run(3, 1)), Err(BackendError::Busy)));
    assert!(
        !is_zero(&ram, START + 3 * BLOCK, BLOCK),
        "what I/O may write to is not discarded"
    );
    drop(second);
    backend.unplug(run(3, 1)).unwrap();
    assert_eq!(region(&ram).pinned_blocks(), 0);
}

#[test]
fn only_what_the_guest_owns_can_be_pinned_and_boot_memory_needs_no_pin() {
    let ram = small();
    ram.backend(0).unwrap().plug_blocks(1, 1).unwrap();
    let memory = ram.device_view();
    assert!(memory.pin(GuestAddress(START), 1).is_none());
    assert!(memory.pin(GuestAddress(START + 2 * BLOCK - 1), 2).is_none());
    assert!(memory.pin(GuestAddress(BOOT), 1).is_none());
    assert_eq!(region(&ram).pinned_blocks(), 0);

    let mut pin = memory.pin(GuestAddress(0x1000), 4096).unwrap();
    assert_eq!(region(&ram).pinned_blocks(), 0);
    assert!(memory.pin_also(&mut pin, GuestAddress(START + BLOCK), 512));
    assert!(!memory.pin_also(&mut pin, GuestAddress(START), 512));
    assert_eq!(region(&ram).pinned_blocks(), 1);
    drop(pin);
    assert_eq!(region(&ram).pinned_blocks(), 0);
}
