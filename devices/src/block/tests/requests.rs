//! What each request does to the disk, and what the driver sees of it.

use super::*;

fn extent(gpa: u64, len: usize) -> Extent {
    Extent { gpa, len }
}

#[test]
fn a_read_fills_its_buffers_in_order_however_they_are_cut() {
    let mut world = World::new(read_write());
    let data = [writable(DATA, 100), writable(DATA + 0x1000, 924)];
    world.request(RequestType::In, 3, &data).is(Status::Ok, 1025);
    assert_eq!(world.driver.mem.peek::<101>(DATA)[98..], [3, 3, 0]);
    let rest = world.driver.mem.peek::<925>(DATA + 0x1000);
    assert_eq!((rest[411], rest[412], rest[923], rest[924]), (3, 4, 4, 0));
    let into = vec![extent(DATA, 100), extent(DATA + 0x1000, 924)];
    assert_eq!(
        world.log(),
        [Operation::Read {
            offset: 3 * 512,
            into
        }]
    );
}

#[test]
fn a_write_lands_where_it_belongs_and_nowhere_else() {
    let mut world = World::new(read_write());
    world.driver.mem.poke(DATA, &[0xab; 512]);
    world
        .request(RequestType::Out, 5, &[readable(DATA, 512)])
        .is(Status::Ok, 1);
    let bytes = &world.disk.state.borrow().bytes;
    assert!(bytes[5 * 512..6 * 512].iter().all(|byte| *byte == 0xab));
    assert_eq!((bytes[5 * 512 - 1], bytes[6 * 512]), (4, 6));
}

#[test]
fn the_last_sector_is_on_the_disk_and_the_one_behind_is_not() {
    let mut world = World::new(read_write());
    let one = [writable(DATA, 512)];
    world
        .request(RequestType::In, SECTORS - 1, &one)
        .is(Status::Ok, 513);
    for beyond in [SECTORS, u64::MAX, u64::MAX / 512 + 1] {
        world.request(RequestType::In, beyond, &one).is(Status::IoErr, 0);
    }
    let two = [writable(DATA, 1024)];
    world
        .request(RequestType::In, SECTORS - 1, &two)
        .is(Status::IoErr, 0);
    let error = RequestError::Sectors {
        sector: SECTORS - 1,
        count: 2,
    };
    assert_eq!(world.device().last_error(), Some(error));
    assert_eq!(world.device().counters().refused, 4);
    assert_eq!(world.log().len(), 1, "the disk hears of none of it");
}

#[test]
fn a_read_only_disk_is_never_written() {
    let mut world = World::new(read_only());
    world
        .request(RequestType::Out, 0, &[readable(DATA, 512)])
        .is(Status::IoErr, 1);
    for request_type in [RequestType::Discard, RequestType::WriteZeroes] {
        let segment = Segment {
            num_sectors: 1,
            ..Segment::default()
        };
        world.range_request(request_type, &[segment]).is(Status::IoErr, 1);
    }
    assert_eq!(world.device().last_error(), Some(RequestError::ReadOnly));
    assert!(world.log().is_empty());
    world
        .request(RequestType::In, 0, &[writable(DATA, 512)])
        .is(Status::Ok, 513);
    world.request(RequestType::Flush, 0, &[]).is(Status::Ok, 1);
}

#[test]
fn requests_overlap_and_end_in_any_order() {
    let mut world = World::new(read_write());
    for sector in 0..3 {
        world.offer(
            RequestType::In as u32,
            sector,
            &[writable(DATA + sector * 0x1000, 512)],
        );
        assert_eq!(world.driver.kick(QUEUE_REQUEST), Effects::NONE);
    }
    assert_eq!(world.device().in_flight(), 3);
    world.disk.finish(2, Ok(()));
    world.disk.finish(0, Ok(()));
    let effects = world.finish();
    let heads: Vec<u32> = world.answer(effects).used.iter().map(|used| used.id).collect();
    assert_eq!(heads, [6, 0]);
    assert_eq!(world.driver.mem.peek::<1>(DATA + 0x2000), [2]);
    assert_eq!(world.device().in_flight(), 1);
}

#[test]
fn what_the_disk_fails_is_told_to_the_driver_and_only_there() {
    let mut world = World::new(read_write());
    for (error, status) in [
        (OperationError::Failed, Status::IoErr),
        (OperationError::Unsupported, Status::Unsupp),
    ] {
        world.offer(RequestType::In as u32, 0, &[writable(DATA, 512)]);
        let _ = world.driver.kick(QUEUE_REQUEST);
        world.disk.finish(0, Err(error));
        let effects = world.finish();
        world.answer(effects).is(status, 0);
    }
    assert_eq!(world.device().counters().failed, 2);
    assert_eq!(world.driver.transport.guest_faults(), 0);
    world
        .request(RequestType::In, 1, &[writable(DATA, 512)])
        .is(Status::Ok, 513);
}

#[test]
fn a_disk_that_is_broken_altogether_is_the_hosts_fault() {
    let mut world = World::new(read_write());
    world.disk.state.borrow_mut().broken = true;
    world.offer(RequestType::Flush as u32, 0, &[]);
    let served = world
        .driver
        .transport
        .process_queue(&world.driver.mem, QUEUE_REQUEST);
    assert!(matches!(served, Err(DeviceError::Backend { .. })));
    assert!(world.driver.transport.finish_requests(&world.driver.mem).is_err());
}

#[test]
fn the_identity_is_20_bytes_of_the_disk() {
    let mut world = World::new(read_write());
    world
        .request(RequestType::GetId, 0, &[writable(DATA, 20)])
        .is(Status::Ok, 21);
    assert_eq!(&world.driver.mem.peek::<20>(DATA), b"disk of a test\0\0\0\0\0\0");
    for len in [19, 21, 512] {
        world
            .request(RequestType::GetId, 0, &[writable(DATA, len)])
            .is(Status::IoErr, 0);
    }
    assert_eq!(DiskId::new("exactly 21 bytes long"), None);
    assert_eq!(DiskId::new("with\ttab"), None);
    assert!(DiskId::new("exactly 20 bytes lon").is_some());
}

#[test]
fn discard_and_write_zeroes_name_their_range_to_the_disk() {
    let mut world = World::new(read_write());
    let segment = |flags| Segment {
        sector: 8,
        num_sectors: 16,
        flags,
    };
    let range = DiskRange {
        offset: 8 * 512,
        len: 16 * 512,
    };
    world
        .range_request(RequestType::Discard, &[segment(0)])
        .is(Status::Ok, 1);
    world
        .range_request(RequestType::WriteZeroes, &[segment(Segment::UNMAP)])
        .is(Status::Ok, 1);
    world
        .range_request(RequestType::WriteZeroes, &[segment(0)])
        .is(Status::Ok, 1);
    assert_eq!(
        world.log(),
        [
            Operation::Discard(range),
            Operation::WriteZeroes(range, Unmap::Allowed),
            Operation::WriteZeroes(range, Unmap::Forbidden),
        ]
    );
    let counters = world.device().counters();
    assert_eq!((counters.discards, counters.write_zeroes), (1, 2));
}

#[test]
fn flags_that_mean_nothing_are_not_supported() {
    let mut world = World::new(read_write());
    for (request_type, flags) in [
        (RequestType::Discard, Segment::UNMAP),
        (RequestType::Discard, 2),
        (RequestType::WriteZeroes, 3),
        (RequestType::WriteZeroes, 1 << 31),
    ] {
        let segment = Segment {
            num_sectors: 1,
            flags,
            ..Segment::default()
        };
        world
            .range_request(request_type, &[segment])
            .is(Status::Unsupp, 1);
        assert_eq!(world.device().last_error(), Some(RequestError::Flags(flags)));
    }
    assert!(world.log().is_empty());
}

#[test]
fn ranges_beyond_the_disk_or_a_limit_and_several_segments_are_errors() {
    let mut world = World::new(Limits {
        capacity_sectors: 1 << 40,
        ..read_write()
    });
    let segment = |sector, num_sectors| Segment {
        sector,
        num_sectors,
        flags: 0,
    };
    let most = world.device().config().max_write_zeroes_sectors;
    assert_eq!(u64::from(most) * 512, MAX_WRITE_ZEROES_LEN);
    for (request_type, segments) in [
        (RequestType::Discard, vec![segment(1 << 40, 1)]),
        (RequestType::Discard, vec![segment(u64::MAX, 1)]),
        (RequestType::WriteZeroes, vec![segment(0, most + 1)]),
        (RequestType::WriteZeroes, vec![segment(0, 1), segment(1, 1)]),
        (RequestType::Discard, vec![]),
    ] {
        world.range_request(request_type, &segments).is(Status::IoErr, 1);
    }
    assert!(world.log().is_empty());
    world
        .range_request(RequestType::Discard, &[segment(0, u32::MAX)])
        .is(Status::Ok, 1);
}

#[test]
fn a_request_without_data_is_done_at_once() {
    let mut world = World::new(read_write());
    world.request(RequestType::In, 0, &[]).is(Status::Ok, 1);
    world.request(RequestType::Out, SECTORS, &[]).is(Status::Ok, 1);
    let nothing = Segment::default();
    world
        .range_request(RequestType::Discard, &[nothing])
        .is(Status::Ok, 1);
    assert!(world.log().is_empty());
}

#[test]
fn a_type_that_is_not_served_is_not_supported() {
    let mut world = World::new(Limits {
        discard: None,
        ..read_write()
    });
    for request_type in [2, 3, 10, 14, 15, 26, u32::MAX] {
        world.offer(request_type, 0, &[]);
        world.serve().is(Status::Unsupp, 1);
        assert_eq!(
            world.device().last_error(),
            Some(RequestError::Unsupported(request_type))
        );
    }
    let segment = Segment {
        num_sectors: 1,
        ..Segment::default()
    };
    world
        .range_request(RequestType::Discard, &[segment])
        .is(Status::Unsupp, 1);
}

#[test]
fn a_driver_that_cannot_flush_gets_stable_writes() {
    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1);
    world
        .request(RequestType::Out, 0, &[readable(DATA, 512)])
        .is(Status::Ok, 1);
    let log = world.log();
    assert!(matches!(log[..], [Operation::Write { .. }, Operation::Flush]));
    assert_eq!(world.device().counters().flushes, 0, "nobody asked for one");
    world
        .request(RequestType::In, 0, &[writable(DATA, 512)])
        .is(Status::Ok, 513);
    assert_eq!(world.log().len(), 3, "reads need none");
}

#[test]
fn a_write_whose_flush_fails_has_failed() {
    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1);
    world.offer(RequestType::Out as u32, 0, &[readable(DATA, 512)]);
    let _ = world.driver.kick(QUEUE_REQUEST);
    world.disk.finish(0, Ok(()));
    assert_eq!(world.finish(), Effects::NONE);
    assert_eq!(world.status(), UNTOUCHED);
    world.disk.finish(0, Err(OperationError::Failed));
    let effects = world.finish();
    world.answer(effects).is(Status::IoErr, 1);
}

#[test]
fn the_driver_chooses_the_cache_if_it_has_negotiated_that() {
    let write = [readable(DATA, 512)];
    let config = CONFIG_OFFSET + offset::WRITEBACK as u64;
    let mut world = World::new(read_write());
    assert_eq!(world.device().config().writeback, 1);
    world.request(RequestType::Out, 0, &write).is(Status::Ok, 1);
    let _ = world.driver.transport.write(&world.driver.mem, config, &[0]);
    assert_eq!(world.device().config().writeback, 0);
    world.request(RequestType::Out, 0, &write).is(Status::Ok, 1);
    let _ = world.driver.transport.write(&world.driver.mem, config, &[1]);
    world.request(RequestType::Out, 0, &write).is(Status::Ok, 1);
    let flushes = world.log().iter().filter(|op| **op == Operation::Flush).count();
    assert_eq!((world.log().len(), flushes), (4, 1));

    let mut world = World::unready(read_write());
    world.driver.initialise(common::VERSION_1 | feature::FLUSH);
    let _ = world.driver.transport.write(&world.driver.mem, config, &[0]);
    assert_eq!(world.device().config().writeback, 1, "not negotiated");
}

#[test]
fn features_and_configuration_are_those_of_the_disk() {
    let world = World::unready(read_write());
    let offered = world.device().features();
    assert_eq!(
        offered,
        1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 14
    );
    let config = world.device().config();
    assert_eq!((config.capacity, config.blk_size), (SECTORS, 512));
    assert_eq!((config.seg_max, config.size_max), (254, 4 << 20));
    assert_eq!((config.max_discard_sectors, config.max_discard_seg), (64, 1));
    assert_eq!(config.discard_sector_alignment, 8);
    assert_eq!(
        (config.max_write_zeroes_sectors, config.write_zeroes_may_unmap),
        (64, 1)
    );

    let world = World::unready(read_only());
    let offered = world.device().features();
    assert_eq!(offered, 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9);
    assert_eq!(world.device().config().max_write_zeroes_seg, 0);
}
