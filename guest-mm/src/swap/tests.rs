//! Headers, and slots against a map of the standard library.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::{AreaHeader, AreaNr, Areas, CLUSTER_SLOTS, HeaderError, SlotError, SlotMap, SlotNr, SwapOnError};
use crate::pfn::PAGE_BYTES;

fn header(nr_blocks: u32, bad: &[u32]) -> AreaHeader {
    AreaHeader {
        nr_blocks,
        bad: bad.to_vec(),
    }
}

#[test]
fn a_header_is_read_as_it_was_written() {
    for header in [header(2, &[]), header(1000, &[1, 5, 999])] {
        let block = header.to_block();
        assert_eq!(AreaHeader::from_block(&block, 1000), Ok(header));
    }
    let golden = header(1000, &[5]).to_block();
    assert_eq!(
        golden[..24],
        *b"BLSTSWAP\x01\0\0\0\xE8\x03\0\0\x01\0\0\0\x05\0\0\0"
    );
}

#[test]
fn a_header_that_cannot_be_right_is_refused() {
    let read = |block: &[u8; PAGE_BYTES]| AreaHeader::from_block(block, 1000);
    assert_eq!(read(&[0; PAGE_BYTES]), Err(HeaderError::NotASwapArea));
    let mut future = header(1000, &[]).to_block();
    future[8] = 2;
    assert_eq!(read(&future), Err(HeaderError::Version(2)));
    for size in [0, 1, 1001] {
        assert_eq!(read(&header(size, &[]).to_block()), Err(HeaderError::Size(size)));
    }
    for (bad, wrong) in [([0, 1], 0), ([7, 7], 7), ([8, 3], 3), ([1, 1000], 1000)] {
        assert_eq!(
            read(&header(1000, &bad).to_block()),
            Err(HeaderError::BadBlock(wrong))
        );
    }
    let mut many = header(1000, &[]).to_block();
    many[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(read(&many), Err(HeaderError::TooManyBad(u32::MAX)));
}

#[test]
fn slots_have_as_many_users_as_a_map_counts() {
    for seed in 1_u64..=20 {
        let mut number = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = |limit: usize| {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            usize::try_from(number % 0x1_0000_0000).unwrap() % limit
        };
        let mut slots = SlotMap::new(AreaNr::FIRST, &header(700, &[1, 255, 256, 600])).unwrap();
        let mut model: BTreeMap<SlotNr, u16> = BTreeMap::new();
        for _ in 0..4000 {
            let known: Vec<SlotNr> = model.keys().copied().collect();
            // Fills up at first, empties later.
            if known.is_empty() || below(7) < 4 {
                match slots.allocate() {
                    Some(slot) => assert_eq!(model.insert(slot, 1), None, "given out twice"),
                    None => assert_eq!(model.len(), 695, "slots are left"),
                }
                continue;
            }
            let slot = known[below(known.len())];
            let users = model.get_mut(&slot).unwrap();
            if below(3) == 0 {
                slots.add_user(slot).unwrap();
                *users += 1;
            } else {
                *users -= 1;
                assert_eq!(slots.drop_user(slot), Ok(*users));
                model.retain(|_, users| *users > 0);
            }
            assert_eq!(slots.nr_free() as usize, 695 - model.len());
        }
        assert!(slots.in_use().eq(model.into_iter()));
    }
}

#[test]
fn pages_that_leave_together_lie_together() {
    let mut slots = SlotMap::new(AreaNr::FIRST, &header(4 * CLUSTER_SLOTS, &[])).unwrap();
    let block = |slot: Option<SlotNr>| slot.map(SlotNr::block);
    let first: Vec<SlotNr> = (0..10).filter_map(|_| slots.allocate()).collect();
    assert!(first.iter().map(|slot| slot.block()).eq(1..=10));
    slots.drop_user(first[3]).unwrap();
    assert_eq!(
        block(slots.allocate()),
        Some(11),
        "a gap before the rest of the cluster"
    );
    for _ in 12..CLUSTER_SLOTS {
        slots.allocate().unwrap();
    }
    assert_eq!(
        block(slots.allocate()),
        Some(CLUSTER_SLOTS),
        "a gap before a free cluster"
    );
    while slots.nr_free() > 1 {
        slots.allocate().unwrap();
    }
    assert_eq!(block(slots.allocate()), Some(4), "the gap in the end");
    assert_eq!(slots.allocate(), None);
}

#[test]
fn users_are_only_of_slots_in_use_and_only_so_many() {
    let mut slots = SlotMap::new(AreaNr::FIRST, &header(4, &[2])).unwrap();
    let [one, two, far] = [1, 2, 99].map(|block| SlotNr::new(block).unwrap());
    for slot in [one, two, far] {
        assert_eq!(slots.add_user(slot), Err(SlotError::NotInUse(slot)));
        assert_eq!(slots.drop_user(slot), Err(SlotError::NotInUse(slot)));
        assert_eq!(slots.users(slot), 0);
    }
    assert_eq!(slots.allocate(), Some(one));
    for _ in 1..32766 {
        slots.add_user(one).unwrap();
    }
    assert_eq!(slots.add_user(one), Err(SlotError::TooManyUsers(one)));
    assert_eq!(slots.users(one), 32766);
}

#[test]
fn a_slot_that_could_not_be_written_last_is_not_given_out_again() {
    let mut slots = SlotMap::new(AreaNr::FIRST, &header(4, &[])).unwrap();
    let [one, two, three] = [1, 2, 3].map(|block| SlotNr::new(block).unwrap());
    for slot in [one, two, three] {
        assert_eq!(slots.allocate(), Some(slot));
    }
    slots.add_user(two).unwrap();
    for (slot, has_arrived) in [(one, false), (two, false), (three, false), (three, true)] {
        slots.written(slot, has_arrived);
    }
    assert_eq!((slots.users(two), slots.in_use().count()), (2, 3));
    assert_eq!([slots.drop_user(two), slots.drop_user(two)], [Ok(1), Ok(0)]);
    assert_eq!([slots.drop_user(one), slots.drop_user(three)], [Ok(0), Ok(0)]);
    assert_eq!((slots.nr_slots(), slots.nr_free()), (1, 1));
    assert_eq!(slots.drop_user(one), Err(SlotError::NotInUse(one)));
    assert_eq!([slots.allocate(), slots.allocate()], [Some(three), None]);
    // Nobody uses it: nothing is remembered of it.
    slots.written(one, true);
    assert_eq!((slots.users(one), slots.nr_slots()), (0, 1));
}

/// The areas of so many slots from now on.
fn areas_of(areas: &mut Areas, count: usize) -> Vec<u8> {
    let slots = std::iter::from_fn(|| areas.allocate()).take(count);
    slots.map(|slot| slot.area().number()).collect()
}

#[test]
fn a_slots_number_says_area_and_block() {
    let last = AreaNr::new(7).unwrap();
    for (area, block) in [(AreaNr::FIRST, 1), (last, 1), (last, (1 << 29) - 1)] {
        let slot = SlotNr::at(area, block).unwrap();
        assert_eq!((slot.area(), slot.block()), (area, block));
        assert_eq!(SlotNr::new(slot.number()), Some(slot));
    }
    assert_eq!(SlotNr::at(last, 0), None);
    assert_eq!(SlotNr::at(last, 1 << 29), None);
    assert_eq!((SlotNr::new(0), SlotNr::new(3 << 29)), (None, None));
    assert_eq!(AreaNr::new(8), None);
}

#[test]
fn the_area_of_the_highest_priority_is_filled_first() {
    let mut areas = Areas::default();
    for priority in [-2, 5, -1] {
        areas.add(&header(11, &[]), priority).unwrap();
    }
    let order = areas_of(&mut areas, 100);
    assert_eq!(order, [[1; 10], [2; 10], [0; 10]].concat());
    let first = SlotNr::at(AreaNr::new(1).unwrap(), 4).unwrap();
    assert_eq!(areas.drop_user(first), Ok(0));
    assert_eq!(areas.allocate(), Some(first));
    assert_eq!(areas.allocate(), None);
}

#[test]
fn areas_of_the_same_priority_take_turns() {
    let mut areas = Areas::default();
    for _ in 0..2 {
        areas.add(&header(1024, &[]), 0).unwrap();
    }
    areas.add(&header(1024, &[]), -1).unwrap();
    let order = areas_of(&mut areas, 320);
    assert!(!order.contains(&2), "{order:?}");
    let turns = order.chunk_by(|a, b| a == b);
    let lengths: Vec<usize> = turns.map(<[u8]>::len).collect();
    assert_eq!(lengths, [31, 31, 32, 32, 32, 32, 32, 32, 32, 32, 2]);
}

#[test]
fn users_are_counted_in_the_slots_own_area() {
    let mut areas = Areas::default();
    areas.add(&header(8, &[]), 1).unwrap();
    areas.add(&header(8, &[]), 0).unwrap();
    let slots: Vec<SlotNr> = std::iter::from_fn(|| areas.allocate()).collect();
    assert_eq!(slots.len(), 14);
    assert_eq!(areas.add_user(slots[9]), Ok(()));
    let users: Vec<u16> = slots.iter().map(|slot| areas.users(*slot)).collect();
    assert_eq!(users.iter().filter(|users| **users == 2).count(), 1);
    assert_eq!(areas.users(slots[9]), 2);
    let free: Vec<u32> = areas.usage().map(|usage| usage.free).collect();
    assert_eq!(free, [0, 0]);
    assert_eq!(
        (areas.drop_user(slots[9]), areas.drop_user(slots[9])),
        (Ok(1), Ok(0))
    );
    let free: Vec<u32> = areas.usage().map(|usage| usage.free).collect();
    assert_eq!(free, [0, 1]);
    let nowhere = SlotNr::at(AreaNr::new(2).unwrap(), 1).unwrap();
    assert_eq!(areas.users(nowhere), 0);
    assert_eq!(areas.add_user(nowhere), Err(SlotError::NotInUse(nowhere)));
}

#[test]
fn more_areas_than_can_be_numbered_and_larger_ones_are_refused() {
    let mut areas = Areas::default();
    let large = AreaHeader::new((1 << 29) + 1);
    assert_eq!(areas.add(&large, 0), Err(SwapOnError::TooLarge(large.nr_blocks)));
    for _ in 0..8 {
        areas.add(&header(2, &[]), 0).unwrap();
    }
    assert_eq!(areas.add(&header(2, &[]), 0), Err(SwapOnError::TooMany));
}
