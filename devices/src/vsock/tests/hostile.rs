//! A guest that keeps to no rule: everything it can make the device keep is bounded, and a good stream works afterwards.

use proptest::prelude::*;
use virtio_wire::vsock::shutdown;

use super::*;

const KEY: StreamKey = StreamKey {
    host_port: 1000,
    guest_port: 5,
};

#[test]
fn refusals_that_nobody_takes_hold_the_guest_back_and_are_bounded() {
    let mut guest = Guest::without_buffers();
    let count = u32::try_from(REFUSALS_LIMIT).unwrap() + 20;
    let mut taken = 0;
    for port in 0..count {
        // One packet at a time: the queue of the test has 16 entries.
        let key = StreamKey {
            host_port: 7,
            guest_port: port,
        };
        if taken == port as usize {
            guest.send(key, op::REQUEST);
            taken += guest.driver.used(QUEUE_TRANSMIT).len();
        }
    }
    assert_eq!(taken, REFUSALS_LIMIT);
    assert_eq!(guest.driver.transport.device().refusals.len(), REFUSALS_LIMIT);
    guest.offer(8);
    let mut refused = 0;
    loop {
        let ops = guest.ops();
        if ops.is_empty() {
            break;
        }
        assert!(ops.iter().all(|op| *op == (op::RST, 0)));
        refused += ops.len();
    }
    // The one that was held is answered too.
    assert_eq!(refused, REFUSALS_LIMIT + 1);
    assert_eq!(guest.driver.used(QUEUE_TRANSMIT).len(), 1);
    guest.connect(1000, 5);
}

#[test]
fn there_are_no_more_streams_than_the_limit() {
    let mut guest = Guest::new();
    let limit = u32::try_from(STREAMS_LIMIT).unwrap();
    for port in 0..limit {
        guest.connect(1000, port);
    }
    let key = StreamKey {
        host_port: 1000,
        guest_port: limit,
    };
    guest.send(key, op::REQUEST);
    assert_eq!(guest.ops(), [(op::RST, 0)]);
    assert!(matches!(guest.open(1), Err(OpenError::Full)));
    assert_eq!(guest.streams(), STREAMS_LIMIT);
    let gone = StreamKey {
        host_port: 1000,
        guest_port: 9,
    };
    guest.send(gone, op::RST);
    guest.send(key, op::REQUEST);
    assert_eq!(guest.ops(), [(op::RESPONSE, 0)]);
}

#[test]
fn a_stream_made_and_broken_off_again_and_again_leaves_nothing_behind() {
    let mut guest = Guest::without_buffers();
    for _ in 0..1000 {
        guest.send(KEY, op::REQUEST);
        guest.send(KEY, op::RST);
        let _ = guest.driver.used(QUEUE_TRANSMIT);
    }
    assert_eq!(guest.streams(), 0);
    assert_eq!(guest.driver.transport.device().table.ready_len(), 0);
    guest.offer(8);
    guest.connect(1000, 5);
}

#[test]
fn packets_out_of_place_are_answered_with_rst() {
    for op in [
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        0,
        99,
    ] {
        let mut guest = Guest::new();
        guest.send(KEY, op);
        assert_eq!(guest.ops(), [(op::RST, 0)], "operation {op} without a stream");
        assert_eq!(guest.counters().breaches, 1);
    }
    for op in [op::REQUEST, op::RESPONSE, 0, 99] {
        let mut guest = Guest::new();
        let (key, far) = guest.connect(1000, 5);
        guest.send(key, op);
        assert_eq!(guest.ops(), [(op::RST, 0)], "operation {op} in an open stream");
        assert!(far.borrow().closed);
        assert_eq!(guest.counters().breaches, 1);
    }
    let mut guest = Guest::new();
    guest.send(KEY, op::RST);
    assert_eq!(guest.ops(), [], "an RST is never answered");
}

#[test]
fn payload_after_its_end_or_before_its_beginning_breaks_the_stream_off() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    guest.shut_down(key, shutdown::SEND);
    guest.send_payload(key, b"more");
    assert_eq!(guest.ops(), [(op::RST, 0)]);
    assert!(far.borrow().incoming.is_empty());
    let (key, _far) = guest.open(80).unwrap();
    guest.send_payload(key, b"too early");
    assert_eq!(guest.ops().last(), Some(&(op::RST, 0)));
    assert_eq!((guest.streams(), guest.counters().breaches), (0, 2));
}

#[test]
fn packets_of_another_sender_are_dropped_and_those_to_another_receiver_refused() {
    let mut guest = Guest::new();
    for src_cid in [0, 2, CID + 1, CID | 1 << 32] {
        let header = Header {
            src_cid,
            ..guest.header(KEY, op::REQUEST)
        };
        guest.send_raw(&header, &[]);
    }
    assert_eq!((guest.ops(), guest.counters().breaches), (vec![], 4));
    let header = Header {
        dst_cid: 99,
        ..guest.header(KEY, op::REQUEST)
    };
    guest.send_raw(&header, &[]);
    let (reply, _) = guest.received().remove(0);
    assert_eq!((reply.op, reply.src_cid, reply.dst_cid), (op::RST, 99, CID));
    let header = Header {
        socket_type: socket_type::SEQPACKET,
        ..guest.header(KEY, op::REQUEST)
    };
    guest.send_raw(&header, &[]);
    let (reply, _) = guest.received().remove(0);
    assert_eq!((reply.op, reply.socket_type), (op::RST, socket_type::SEQPACKET));
}

#[test]
fn a_payload_shorter_than_its_header_says_breaks_the_stream_off() {
    let mut guest = Guest::new();
    let (key, far) = guest.connect(1000, 5);
    let header = Header {
        len: 10,
        ..guest.header(key, op::RW)
    };
    guest.send_raw(&header, b"abc");
    assert_eq!(guest.ops(), [(op::RST, 0)]);
    assert!(far.borrow().incoming.is_empty());
    assert_eq!(guest.driver.transport.guest_faults(), 1);
    guest.connect(1000, 5);
}

#[test]
fn bad_receive_buffers_cost_the_host_no_byte() {
    let mut guest = Guest::without_buffers();
    guest.send(KEY, op::REQUEST);
    let far = guest.far(KEY);
    guest.host_sends(KEY, &far, b"precious");
    let gone = PatchyMemory::BASE + 0x8000;
    guest.driver.mem.refuse(gone..gone + 0x1000);
    let bad = [
        vec![writable(gone, 4096)],
        vec![writable(gone - 44, 4096)],
        vec![writable(RECEIVE_BUFFERS, 44)],
        vec![readable(RECEIVE_BUFFERS, 4096)],
        vec![readable(RECEIVE_BUFFERS, 44), writable(RECEIVE_BUFFERS, 4096)],
        vec![writable(u64::MAX - 10, 4096)],
    ];
    for buffers in &bad {
        guest.driver.offer(QUEUE_RECEIVE, buffers);
    }
    let _ = guest.driver.kick(QUEUE_RECEIVE);
    let used = guest.driver.used(QUEUE_RECEIVE);
    assert_eq!(used.len(), bad.len());
    assert!(used.iter().all(|element| element.len == 0));
    assert_eq!(guest.driver.transport.guest_faults(), bad.len() as u64);
    guest.offer(2);
    let packets = guest.received();
    assert_eq!(packets[0].0.op, op::RESPONSE);
    assert_eq!(payload(&packets[1..]), b"precious");
}

#[test]
fn chains_that_hold_no_packet_are_returned_and_the_next_is_served() {
    let mut guest = Guest::new();
    let at = PatchyMemory::BASE + 0x8000;
    let bad = [
        vec![readable(at, 43)],
        vec![writable(at, 4096)],
        vec![readable(at, 44), writable(at, 44)],
        vec![readable(PatchyMemory::END, 44)],
    ];
    for buffers in &bad {
        guest.driver.offer(QUEUE_TRANSMIT, buffers);
    }
    guest.send(KEY, op::REQUEST);
    assert_eq!(guest.ops(), [(op::RESPONSE, 0)]);
    assert_eq!(guest.driver.transport.guest_faults(), bad.len() as u64);
}

/// One thing that a hostile guest, or a lively host, can do.
#[derive(Debug, Clone)]
enum Step {
    Packet {
        header: Header,
        payload: usize,
    },
    Offer,
    Take,
    Open(u32),
    Host {
        key: StreamKey,
        room: usize,
        bytes: usize,
        end: bool,
        broken: bool,
        hang_up: bool,
    },
}

fn key() -> impl Strategy<Value = StreamKey> {
    let host_port = prop_oneof![999..1002u32, (1u32 << 30)..(1 << 30) + 3];
    (host_port, 0..3u32).prop_map(|(host_port, guest_port)| StreamKey {
        host_port,
        guest_port,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = (
        any::<u32>(),
        prop_oneof![Just(0), 0..200u32, any::<u32>()],
        any::<u32>(),
    );
    let packet = (key(), 0..9u16, 0..4u32, 1..3u16, numbers, 0..300usize).prop_map(
        |(key, op, flags, socket_type, (buf_alloc, len, fwd_cnt), payload)| Step::Packet {
            header: Header {
                src_cid: CID,
                dst_cid: HOST_CID,
                src_port: key.guest_port,
                dst_port: key.host_port,
                len,
                socket_type: if buf_alloc % 8 == 0 { socket_type } else { 1 },
                op,
                flags,
                buf_alloc,
                fwd_cnt: if buf_alloc % 3 == 0 { fwd_cnt } else { 0 },
            },
            payload,
        },
    );
    let host = (key(), 0..100usize, 0..5000usize, any::<[bool; 3]>()).prop_map(
        |(key, room, bytes, [end, broken, hang_up])| Step::Host {
            key,
            room,
            bytes,
            end: end && bytes % 4 == 0,
            broken: broken && bytes % 4 == 1,
            hang_up: hang_up && bytes % 4 == 2,
        },
    );
    prop_oneof![
        6 => packet,
        1 => Just(Step::Offer),
        2 => Just(Step::Take),
        1 => (0..3u32).prop_map(Step::Open),
        3 => host,
    ]
}

impl Guest {
    fn take_step(&mut self, step: &Step) {
        match *step {
            Step::Packet { header, payload } => self.send_raw(&header, &pattern(payload)),
            Step::Offer if self.offered.len() < 8 => self.offer(1),
            Step::Offer => {}
            Step::Take => drop(self.received()),
            Step::Open(port) => drop(self.open(port)),
            Step::Host {
                key,
                room,
                bytes,
                end,
                broken,
                hang_up,
            } => {
                let far = self.host.0.borrow().get(&key).cloned();
                if let Some(far) = far {
                    let mut far = far.borrow_mut();
                    far.room = room;
                    far.ended |= end;
                    far.broken |= broken;
                    far.outgoing.extend(pattern(bytes));
                }
                if hang_up {
                    self.hung_up(key);
                } else {
                    self.changed(key);
                }
            }
        }
        let _ = self.driver.used(QUEUE_TRANSMIT);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn nothing_a_guest_sends_breaks_the_device(steps in prop::collection::vec(step(), 1..120)) {
        let mut guest = Guest::without_buffers();
        for step in &steps {
            guest.take_step(step);
            let device = guest.driver.transport.device();
            prop_assert!(device.refusals.len() <= REFUSALS_LIMIT);
            // Six ports of the host by three of the guest.
            prop_assert!(device.streams() <= 18);
        }
        guest.driver.initialise(virtio_wire::feature::VERSION_1);
        prop_assert_eq!(guest.streams(), 0);
        guest.offered.clear();
        (guest.buf_alloc, guest.fwd_cnt) = (1 << 20, 0);
        guest.offer(8);
        let (key, far) = guest.connect(1500, 77);
        guest.send_payload(key, b"good");
        prop_assert_eq!(&far.borrow().incoming, b"good");
    }
}
