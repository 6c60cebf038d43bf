//! Headers, and slots against a map of the standard library.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::{AreaHeader, CLUSTER_SLOTS, HeaderError, SlotError, SlotMap, SlotNr};
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
        let mut slots = SlotMap::new(&header(700, &[1, 255, 256, 600])).unwrap();
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
    let mut slots = SlotMap::new(&header(4 * CLUSTER_SLOTS, &[])).unwrap();
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
    let mut slots = SlotMap::new(&header(4, &[2])).unwrap();
    let [one, two, far] = [1, 2, 99].map(|block| SlotNr::new(block).unwrap());
    for slot in [one, two, far] {
        assert_eq!(slots.add_user(slot), Err(SlotError::NotInUse(slot)));
        assert_eq!(slots.drop_user(slot), Err(SlotError::NotInUse(slot)));
        assert_eq!(slots.users(slot), 0);
    }
    assert_eq!(slots.allocate(), Some(one));
    for _ in 1..65534 {
        slots.add_user(one).unwrap();
    }
    assert_eq!(slots.add_user(one), Err(SlotError::TooManyUsers(one)));
    assert_eq!(slots.users(one), 65534);
}
