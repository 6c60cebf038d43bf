//! How streams begin, carry bytes under credit, and end.

use virtio_wire::vsock::shutdown::{RECEIVE, SEND};

use super::*;

const KEY: StreamKey = StreamKey {
    host_port: 1000,
    guest_port: 5,
};

#[test]
fn only_context_ids_of_guests_are_taken() {
    for cid in [3, CID, 0xffff_fffe] {
        assert_eq!(GuestCid::new(cid).map(GuestCid::get), Some(cid));
    }
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32, u64::MAX] {
        assert_eq!(GuestCid::new(cid), None);
    }
}

#[test]
fn the_configuration_is_the_context_id() {
    let guest = Guest::new();
    let mut config = [0xee; 12];
    guest.driver.transport.read(0x100, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_stream_that_the_guest_asks_for_carries_bytes_both_ways() {
    let mut guest = Guest::new();
    guest.send(KEY, op::REQUEST);
    let (response, _) = guest.received().remove(0);
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: CID,
        src_port: 1000,
        dst_port: 5,
        len: 0,
        socket_type: socket_type::STREAM,
        op: op::RESPONSE,
        flags: 0,
        buf_alloc: TO_HOST_LIMIT,
        fwd_cnt: 0,
    };
    assert_eq!(response, expected);
    let far = guest.far(KEY);
    guest.send_payload(KEY, b"ping");
    assert_eq!(far.borrow().incoming, b"ping");
    guest.host_sends(KEY, &far, b"pong");
    let packets = guest.received();
    assert_eq!(payload(&packets), b"pong");
    assert_eq!(packets[0].0.fwd_cnt, 4, "every packet tells what went on");
    let counters = guest.counters();
    assert_eq!((counters.bytes_from_guest, counters.bytes_to_guest), (4, 4));
    assert_eq!((counters.from_guest, counters.breaches), (1, 0));
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let mut guest = Guest::new();
    let key = StreamKey {
        host_port: 7,
        guest_port: 5,
    };
    guest.send(key, op::REQUEST);
    let packets = guest.received();
    assert_eq!((packets[0].0.op, packets[0].0.dst_port), (op::RST, 5));
    assert_eq!((guest.streams(), guest.counters().refused), (0, 1));
}

#[test]
fn a_stream_that_the_host_asks_for_waits_for_the_guest() {
    let mut guest = Guest::new();
    let (key, far) = guest.open(80).unwrap();
    assert_eq!(guest.ops(), [(op::REQUEST, 0)]);
    guest.host_sends(key, &far, b"early");
    assert_eq!(guest.ops(), [], "nothing is sent before it is granted");
    guest.send(key, op::RESPONSE);
    assert!(far.borrow().accepted);
    assert_eq!(payload(&guest.received()), b"early");
    guest.send_payload(key, b"hello");
    assert_eq!(far.borrow().incoming, b"hello");
}

#[test]
fn a_stream_that_the_guest_refuses_is_closed_at_the_host() {
    let mut guest = Guest::new();
    let (key, far) = guest.open(81).unwrap();
    guest.send(key, op::RST);
    assert!(far.borrow().closed && !far.borrow().accepted);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn a_host_that_gives_up_before_the_guest_answers_takes_its_request_back() {
    let mut guest = Guest::new();
    let (key, far) = guest.open(80).unwrap();
    guest.hung_up(key);
    assert!(far.borrow().closed);
    assert_eq!(guest.ops(), [(op::REQUEST, 0), (op::RST, 0)]);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn the_host_cannot_reach_a_guest_without_a_driver() {
    let cid = GuestCid::new(CID).unwrap();
    let mut driver = Driver::new(Vsock::new(cid, FakeHost::default()));
    let opened = driver.transport.open_stream(1, |_| unreachable!());
    assert!(matches!(opened, Err(OpenError::NotReady)));
}

#[test]
fn what_the_host_does_not_take_is_kept_up_to_the_credit_and_no_byte_more() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().room = 0;
    let bytes = pattern(TO_HOST_LIMIT as usize);
    guest.send_payload(key, &bytes[..40_000]);
    guest.send_payload(key, &bytes[40_000..]);
    assert_eq!(guest.ops(), []);
    far.borrow_mut().room = usize::MAX;
    guest.changed(key);
    assert_eq!(far.borrow().incoming, bytes);
    let packets = guest.received();
    assert_eq!(packets.len(), 1, "{packets:?}");
    assert_eq!(
        (packets[0].0.op, packets[0].0.fwd_cnt),
        (op::CREDIT_UPDATE, TO_HOST_LIMIT)
    );

    far.borrow_mut().room = 0;
    guest.send_payload(key, &bytes);
    guest.send_payload(key, b"!");
    assert_eq!(guest.ops(), [(op::RST, 0)]);
    assert!(far.borrow().closed);
    assert_eq!((guest.streams(), guest.counters().breaches), (0, 1));
}

#[test]
fn the_guest_is_sent_no_more_than_it_can_hold_and_asked_once_for_more() {
    let mut guest = Guest::new();
    guest.buf_alloc = 100;
    let (key, far) = guest.connect(1000, 5);
    let bytes = pattern(250);
    guest.host_sends(key, &far, &bytes);
    let packets = guest.received();
    assert_eq!(payload(&packets[..1]), &bytes[..100]);
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    guest.changed(key);
    assert_eq!(guest.ops(), [], "it was asked already");
    guest.fwd_cnt = 60;
    guest.send(key, op::CREDIT_UPDATE);
    assert_eq!(guest.ops(), [(op::RW, 0), (op::CREDIT_REQUEST, 0)]);
    assert_eq!(far.borrow().outgoing.len(), 90);
    (guest.fwd_cnt, guest.buf_alloc) = (160, 1000);
    guest.send(key, op::CREDIT_UPDATE);
    assert_eq!(payload(&guest.received()), &bytes[160..]);
}

#[test]
fn a_guest_that_asks_is_told_its_credit() {
    let mut guest = Guest::new();
    let (key, _far) = guest.connect(1000, 5);
    guest.send_payload(key, b"abc");
    guest.send(key, op::CREDIT_REQUEST);
    let (header, _) = guest.received().remove(0);
    assert_eq!(
        (header.op, header.buf_alloc, header.fwd_cnt),
        (op::CREDIT_UPDATE, TO_HOST_LIMIT, 3)
    );
}

#[test]
fn either_end_can_stop_sending_and_still_receive() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().ended = true;
    guest.host_sends(key, &far, b"last words");
    let packets = guest.received();
    assert_eq!(payload(&packets[..1]), b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, SEND));
    guest.send_payload(key, b"reply");
    assert_eq!(far.borrow().incoming, b"reply");
    guest.shut_down(key, SEND);
    assert_eq!(far.borrow().shutdowns, [Shutdown::Write]);
    assert_eq!(guest.ops(), []);
    guest.shut_down(key, RECEIVE);
    assert_eq!(guest.ops(), [(op::RST, 0)], "bits of two packets add up");
    assert!(far.borrow().closed);
}

#[test]
fn a_guest_that_closes_is_answered_once_its_last_bytes_have_arrived() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().room = 3;
    guest.send_payload(key, b"abcdef");
    guest.shut_down(key, SEND | RECEIVE);
    assert_eq!((guest.ops(), guest.streams()), (vec![], 1));
    far.borrow_mut().room = 3;
    guest.changed(key);
    assert_eq!(guest.ops(), [(op::RST, 0)]);
    assert_eq!(far.borrow().incoming, b"abcdef");
    assert!(far.borrow().closed);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn what_a_guest_sent_before_it_left_in_order_still_arrives() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().room = 0;
    guest.send_payload(key, b"slow reader");
    guest.shut_down(key, SEND | RECEIVE);
    guest.send(key, op::RST);
    assert!(!far.borrow().closed);
    guest.send(key, op::REQUEST);
    assert_eq!(guest.ops(), [(op::RST, 0)], "its place is taken until then");
    far.borrow_mut().room = usize::MAX;
    guest.changed(key);
    assert_eq!(far.borrow().incoming, b"slow reader");
    assert!(far.borrow().closed);
    guest.connect(1000, 5);
}

#[test]
fn a_guest_that_breaks_off_is_gone_at_once() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().room = 0;
    guest.send_payload(key, b"abc");
    guest.send(key, op::RST);
    assert!(far.borrow().closed && far.borrow().incoming.is_empty());
    assert_eq!((guest.ops(), guest.streams()), (vec![], 0));
}

#[test]
fn a_host_that_hangs_up_is_announced_after_its_last_bytes() {
    let mut guest = Guest::new();
    guest.buf_alloc = 4;
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().ended = true;
    far.borrow_mut().outgoing.extend(b"abcdef");
    guest.hung_up(key);
    let ops = guest.ops();
    // That it takes no more is said at once; that it sends no more only when it is so.
    assert_eq!(
        ops,
        [(op::RW, 0), (op::CREDIT_REQUEST, 0), (op::SHUTDOWN, RECEIVE)]
    );
    guest.fwd_cnt = 4;
    guest.send(key, op::CREDIT_UPDATE);
    assert_eq!(guest.ops(), [(op::RW, 0), (op::SHUTDOWN, SEND | RECEIVE)]);
    assert!(far.borrow().closed);
    guest.send_payload(key, b"too late");
    assert_eq!(guest.streams(), 1);
    guest.send(key, op::RST);
    assert_eq!((guest.ops(), guest.streams()), (vec![], 0));
}

#[test]
fn a_host_that_takes_no_more_is_announced_and_the_rest_thrown_away() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    far.borrow_mut().broken = true;
    let bytes = pattern(TO_HOST_LIMIT as usize);
    guest.send_payload(key, &bytes);
    let ops = guest.ops();
    assert_eq!(ops, [(op::CREDIT_UPDATE, 0), (op::SHUTDOWN, RECEIVE)]);
    guest.host_sends(key, &far, b"but it sends");
    assert_eq!(payload(&guest.received()), b"but it sends");
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::new();
    let streams: Vec<_> = (0..3).map(|port| guest.connect(1000 + port, 5)).collect();
    let bytes = pattern(3 * RECEIVE_SIZE as usize);
    for (_, far) in &streams {
        far.borrow_mut().outgoing.extend(&bytes);
    }
    for (key, _) in &streams {
        let _ = guest.driver.transport.stream_ready(
            *key,
            Readiness {
                readable: true,
                ..Readiness::default()
            },
        );
    }
    let _ = guest.driver.kick(QUEUE_RECEIVE);
    let packets = guest.received();
    let first: Vec<u32> = packets
        .iter()
        .take(6)
        .map(|(header, _)| header.src_port)
        .collect();
    assert_eq!(first[..3], first[3..], "{first:?}");
    let each: BTreeMap<u32, usize> = packets
        .iter()
        .fold(BTreeMap::new(), |mut sums, (header, payload)| {
            *sums.entry(header.src_port).or_default() += payload.len();
            sums
        });
    assert_eq!(each.into_values().collect::<Vec<_>>(), [bytes.len(); 3]);
}

#[test]
fn a_driver_that_resets_the_device_ends_its_streams() {
    let mut guest = Guest::new();
    let (_, far) = guest.connect(1000, 5);
    guest.driver.initialise(virtio_wire::feature::VERSION_1);
    assert!(far.borrow().closed);
    assert_eq!(guest.streams(), 0);
    guest.offered.clear();
    guest.offer(8);
    guest.connect(1000, 5);
}
