//! Chains that are no requests: each is the guest's fault, costs it that chain only, and never reaches the disk.

use super::*;

/// Offers a chain that is wrong and then a good request, in one notification; the good one must be served. Answers the
/// faults counted, the status byte of the wrong chain, and the lengths used.
fn beside_a_good_one(chain: &[Buffer]) -> (u64, u8, Vec<u32>) {
    let mut world = World::new(read_write());
    world.driver.mem.poke(HEADER, &RequestHeader::default().encode());
    world.driver.mem.poke(STATUS, &[UNTOUCHED]);
    world.driver.offer(QUEUE_REQUEST, chain);
    world.driver.mem.poke(STATUS + 8, &[UNTOUCHED]);
    let good = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS + 8, 1)];
    world.driver.offer(QUEUE_REQUEST, &good);
    let answer = world.serve();
    assert_eq!(world.log().len(), 1, "the disk hears of the good one only");
    assert_eq!(world.driver.mem.peek::<1>(STATUS + 8), [Status::Ok as u8]);
    assert!(world.driver.transport.is_live());
    let faults = world.driver.transport.guest_faults();
    (
        faults,
        answer.status,
        answer.used.iter().map(|used| used.len).collect(),
    )
}

#[test]
fn a_chain_without_a_status_byte_comes_back_empty() {
    for chain in [
        vec![readable(HEADER, 16)],
        vec![readable(HEADER, 16), writable(STATUS, 0)],
        vec![readable(HEADER, 16), writable(PatchyMemory::END, 1)],
        vec![
            readable(HEADER, 16),
            writable(DATA, 512),
            writable(PatchyMemory::END, 1),
        ],
        vec![readable(HEADER, 16), writable(u64::MAX, 1)],
    ] {
        let (faults, status, lengths) = beside_a_good_one(&chain);
        assert_eq!(
            (faults, status, lengths),
            (1, UNTOUCHED, vec![0, 513]),
            "{chain:?}"
        );
    }
}

#[test]
fn a_chain_that_is_no_request_is_answered_with_an_error_where_that_is_possible() {
    for chain in [
        vec![writable(STATUS, 1)],
        vec![readable(HEADER, 15), writable(STATUS, 1)],
        vec![readable(PatchyMemory::END, 16), writable(STATUS, 1)],
        // A read with data to write.
        vec![readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
    ] {
        let (faults, status, lengths) = beside_a_good_one(&chain);
        assert_eq!((faults, status), (1, Status::IoErr as u8), "{chain:?}");
        assert_eq!(lengths, [1, 513], "{chain:?}");
    }
}

#[test]
fn a_read_into_memory_that_is_not_there_reads_nothing() {
    let chain = [
        readable(HEADER, 16),
        writable(DATA, 512),
        writable(PatchyMemory::END - 256, 512),
        writable(STATUS, 1),
    ];
    let (faults, status, lengths) = beside_a_good_one(&chain);
    assert_eq!((faults, status), (1, Status::IoErr as u8));
    assert_eq!(lengths, [0, 513]);
}

#[test]
fn a_write_with_room_for_data_or_from_memory_that_is_not_there_is_refused() {
    for data in [
        vec![readable(DATA, 512), writable(DATA, 512)],
        vec![readable(PatchyMemory::END - 256, 512)],
    ] {
        let mut world = World::new(read_write());
        let answer = world.request(RequestType::Out, 0, &data);
        assert_eq!(answer.status, Status::IoErr as u8);
        assert_eq!(world.driver.transport.guest_faults(), 1);
        assert!(world.log().is_empty());
    }
}

#[test]
fn data_that_is_not_whole_sectors_is_an_error() {
    let mut world = World::new(read_write());
    for len in [1, 511, 513] {
        world
            .request(RequestType::In, 0, &[writable(DATA, len)])
            .is(Status::IoErr, 0);
        world
            .request(RequestType::Out, 0, &[readable(DATA, len)])
            .is(Status::IoErr, 1);
        assert_eq!(
            world.device().last_error(),
            Some(RequestError::DataLength(len.into()))
        );
    }
    assert!(world.log().is_empty());
}

#[test]
fn more_data_than_the_limits_allow_is_an_error() {
    let mut world = World::new(Limits {
        capacity_sectors: 1 << 40,
        ..read_write()
    });
    // The length alone decides: no memory is looked at.
    let huge = [writable(DATA, 0xffff_fe00)];
    world.request(RequestType::In, 0, &huge).is(Status::IoErr, 0);
    let error = RequestError::TooLong(0xffff_fe00);
    assert_eq!(world.device().last_error(), Some(error));
}

#[test]
fn memory_unplugged_between_offer_and_service_is_never_touched() {
    let mut world = World::new(read_write());
    world.offer(RequestType::In as u32, 0, &[writable(DATA, 512)]);
    let gone = DATA + 0x100..DATA + 0x200;
    world.driver.mem.refuse(gone.clone());
    world.driver.mem.forget_granted();
    world.serve().is(Status::IoErr, 0);
    assert!(!world.driver.mem.was_granted(&gone));
    assert!(world.log().is_empty());
}

#[test]
fn a_status_byte_unplugged_while_the_disk_works_is_the_guests_fault() {
    let mut world = World::new(read_write());
    world.offer(RequestType::In as u32, 0, &[writable(DATA, 512)]);
    let _ = world.driver.kick(QUEUE_REQUEST);
    world.driver.mem.refuse(STATUS..STATUS + 1);
    world.disk.finish(0, Ok(()));
    let effects = world.finish();
    let answer = world.answer(effects);
    assert_eq!((answer.status, answer.used[0].len), (UNTOUCHED, 0));
    assert_eq!(world.driver.transport.guest_faults(), 1);
}
