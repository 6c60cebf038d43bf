//! The network device between a test driver and a wire in memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;
use virtio_wire::feature as common;
use virtio_wire::mmio::CONFIG_OFFSET;

use super::*;
use crate::testing::{Buffer, Driver, PatchyMemory, readable, writable};

const BUFFER: u64 = PatchyMemory::BASE + 0x8000;
const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

#[derive(Debug, Default)]
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    offloads: Vec<Offloads>,
    broken: bool,
}

#[derive(Debug, Default, Clone)]
struct FakeHost(Rc<RefCell<Wire>>);

impl NetHost for FakeHost {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let packet = wire.to_guest.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        into[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut wire = self.0.borrow_mut();
        if wire.broken {
            return Err(io::ErrorKind::Other.into());
        }
        wire.from_guest.push(packet.to_vec());
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut wire = self.0.borrow_mut();
        wire.offloads.push(offloads);
        if wire.broken {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

struct World {
    driver: Driver<Net<FakeHost>>,
    wire: Rc<RefCell<Wire>>,
}

impl World {
    fn unborn() -> World {
        let host = FakeHost::default();
        let wire = Rc::clone(&host.0);
        let driver = Driver::new(Net::new(MacAddress::new(MAC).unwrap(), host));
        World { driver, wire }
    }

    fn new() -> World {
        let mut world = World::unborn();
        let features = world.driver.transport.device().features();
        world.driver.initialise(features | common::VERSION_1);
        world
    }

    fn host_sends(&mut self, frame: &[u8]) {
        let packet = [&Header::default().encode()[..], frame].concat();
        self.wire.borrow_mut().to_guest.push_back(packet);
        let effects = self.driver.transport.packets_waiting();
        assert_eq!(effects.notified, QueueSet::one(QUEUE_RECEIVE));
        let _ = self.driver.kick(QUEUE_RECEIVE);
    }

    fn offer_receive(&mut self, gpa: u64, len: u32) {
        self.driver.offer(QUEUE_RECEIVE, &[writable(gpa, len)]);
        let _ = self.driver.kick(QUEUE_RECEIVE);
    }

    fn guest_sends(&mut self, header: Header, frame: &[u8]) {
        self.driver.mem.poke(BUFFER, &header.encode());
        self.driver.mem.poke(BUFFER + 12, frame);
        let frame_len = u32::try_from(frame.len()).unwrap();
        self.driver.offer(
            QUEUE_TRANSMIT,
            &[readable(BUFFER, 12), readable(BUFFER + 12, frame_len)],
        );
        let _ = self.driver.kick(QUEUE_TRANSMIT);
    }

    fn counters(&self) -> Counters {
        self.driver.transport.device().counters()
    }

    fn used_lengths(&mut self, queue: u16) -> Vec<u32> {
        self.driver.used(queue).iter().map(|used| used.len).collect()
    }
}

#[test]
fn frames_go_both_ways_as_they_are() {
    let mut world = World::new();
    world.guest_sends(Header::default(), b"a frame from the guest");
    let expected = [&[0; 12][..], b"a frame from the guest"].concat();
    assert_eq!(world.wire.borrow().from_guest, [expected]);
    world.offer_receive(BUFFER + 0x1000, 1526);
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [0; 0], "there is none yet");
    world.host_sends(b"a frame to it");
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [25]);
    let header = Header::decode(&world.driver.mem.peek(BUFFER + 0x1000));
    assert_eq!((header.num_buffers, header.gso_type), (1, gso::NONE));
    assert_eq!(&world.driver.mem.peek::<13>(BUFFER + 0x100c), b"a frame to it");
    let counters = world.counters();
    assert_eq!((counters.frames_from_guest, counters.bytes_from_guest), (1, 22));
    assert_eq!((counters.frames_to_guest, counters.bytes_to_guest), (1, 13));
    assert_eq!((counters.lost_from_guest, counters.lost_to_guest), (0, 0));
}

#[test]
fn frames_wait_at_the_host_until_the_guest_has_buffers() {
    let mut world = World::new();
    world.host_sends(b"first");
    world.host_sends(b"second");
    assert_eq!(
        world.wire.borrow().to_guest.len(),
        2,
        "nothing is kept in between"
    );
    world.offer_receive(BUFFER, 100);
    world.offer_receive(BUFFER + 0x100, 100);
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [17, 18]);
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_the_next_takes_its_buffer() {
    let mut world = World::new();
    world.offer_receive(BUFFER, 20);
    world.host_sends(b"much too long for it");
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [0; 0]);
    world.host_sends(b"short");
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [17]);
    assert_eq!(world.counters().lost_to_guest, 1);
}

#[test]
fn what_was_not_agreed_on_is_not_passed_on() {
    let tcp = |gso_type| Header {
        gso_type,
        gso_size: 1448,
        flags: FLAG_NEEDS_CSUM,
        ..Header::default()
    };
    let mut world = World::new();
    for gso_type in [gso::TCPV4, gso::TCPV6, gso::TCPV4 | gso::ECN] {
        world.guest_sends(tcp(gso_type), b"a segment");
    }
    assert_eq!(world.wire.borrow().from_guest.len(), 3);
    for gso_type in [gso::ECN, 2, 3, 5, 0x7f] {
        world.guest_sends(tcp(gso_type), b"no segment");
    }
    assert_eq!(
        (
            world.wire.borrow().from_guest.len(),
            world.counters().lost_from_guest
        ),
        (3, 5)
    );

    let mut plain = World::unborn();
    plain.driver.initialise(common::VERSION_1);
    plain.guest_sends(tcp(gso::TCPV4), b"a segment");
    plain.guest_sends(tcp(gso::NONE), b"a checksum");
    plain.guest_sends(Header::default(), b"a frame");
    assert_eq!(
        (
            plain.wire.borrow().from_guest.len(),
            plain.counters().lost_from_guest
        ),
        (1, 2)
    );
}

#[test]
fn the_host_learns_what_the_guest_takes() {
    let world = World::new();
    assert_eq!(world.wire.borrow().offloads, [Offloads { checksum: true }]);
    let mut plain = World::unborn();
    plain.driver.initialise(common::VERSION_1);
    assert_eq!(plain.wire.borrow().offloads, [Offloads { checksum: false }]);
}

#[test]
fn a_host_that_cannot_do_what_was_agreed_ends_the_machine() {
    let mut world = World::unborn();
    world.wire.borrow_mut().broken = true;
    world.driver.initialise(common::VERSION_1);
    world.driver.offer(QUEUE_TRANSMIT, &[readable(BUFFER, 20)]);
    let failed = world
        .driver
        .transport
        .process_queue(&world.driver.mem, QUEUE_TRANSMIT);
    assert!(matches!(failed, Err(DeviceError::Backend { .. })));
}

#[test]
fn what_the_host_does_not_take_is_lost_and_counted() {
    let mut world = World::new();
    world.wire.borrow_mut().broken = true;
    world.guest_sends(Header::default(), b"lost");
    assert_eq!(world.used_lengths(QUEUE_TRANSMIT), [0]);
    assert_eq!(world.counters().lost_from_guest, 1);
}

#[test]
fn the_driver_is_told_of_the_link_and_no_frame_passes_one_that_is_down() {
    let mut world = World::new();
    world.offer_receive(BUFFER + 0x1000, 100);
    let effects = world.driver.transport.set_link(LinkState::Down);
    assert!(effects.interrupt && effects.config_changed);
    let mut config = [0; 8];
    world.driver.transport.read(CONFIG_OFFSET, &mut config);
    assert_eq!(config, [2, 0, 0, 1, 2, 3, 0, 0]);
    world.host_sends(b"not yet");
    world.guest_sends(Header::default(), b"never");
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [0; 0]);
    assert!(world.wire.borrow().from_guest.is_empty());
    let effects = world.driver.transport.set_link(LinkState::Up);
    assert!(effects.interrupt && effects.notified.contains(QUEUE_RECEIVE));
    let _ = world.driver.kick(QUEUE_RECEIVE);
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [19]);
    let again = world.driver.transport.set_link(LinkState::Up);
    assert!(!again.interrupt, "nothing has changed");
}

#[test]
fn malformed_chains_cost_themselves_only() {
    let mut world = World::new();
    let gone = PatchyMemory::BASE + 0x20000;
    world.driver.mem.refuse(gone..gone + 0x1000);
    world.host_sends(b"precious");
    let bad: [&[Buffer]; 5] = [
        &[writable(gone, 1526)],
        &[writable(BUFFER, 12)],
        &[readable(BUFFER, 1526)],
        &[readable(BUFFER, 12), writable(BUFFER, 1526)],
        &[writable(PatchyMemory::END - 100, 1526)],
    ];
    for chain in bad {
        world.driver.offer(QUEUE_RECEIVE, chain);
    }
    world.offer_receive(BUFFER, 1526);
    assert_eq!(world.used_lengths(QUEUE_RECEIVE), [0, 0, 0, 0, 0, 20]);
    let bad: [&[Buffer]; 5] = [
        &[readable(gone, 100)],
        &[readable(BUFFER, 12)],
        &[writable(BUFFER, 100)],
        &[readable(BUFFER, 100), writable(BUFFER, 12)],
        &[readable(u64::MAX - 5, 100)],
    ];
    for chain in bad {
        world.driver.offer(QUEUE_TRANSMIT, chain);
    }
    world.guest_sends(Header::default(), b"good");
    assert_eq!(world.used_lengths(QUEUE_TRANSMIT), [0; 6]);
    assert_eq!(world.driver.transport.guest_faults(), 10);
    assert_eq!(world.wire.borrow().from_guest.len(), 1);
}

#[test]
fn a_frame_beyond_the_limit_is_lost() {
    let mut world = World::new();
    let largest = u32::try_from(Header::SIZE + FRAME_LIMIT).unwrap();
    world.driver.offer(QUEUE_TRANSMIT, &[readable(BUFFER, largest)]);
    world
        .driver
        .offer(QUEUE_TRANSMIT, &[readable(BUFFER, largest), readable(BUFFER, 1)]);
    let _ = world.driver.kick(QUEUE_TRANSMIT);
    assert_eq!(
        (
            world.counters().frames_from_guest,
            world.counters().lost_from_guest
        ),
        (1, 1)
    );
}

#[test]
fn addresses_of_groups_and_of_nobody_are_none_of_an_interface() {
    let text = MacAddress::new(MAC).map(|mac| mac.to_string());
    assert_eq!(text.as_deref(), Some("02:00:00:01:02:03"));
    for bytes in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(MacAddress::new(bytes), None);
    }
}

proptest! {
    #[test]
    fn every_seed_gives_a_local_address(seed in any::<u64>()) {
        let mac = MacAddress::from_seed(seed);
        prop_assert_eq!(MacAddress::new(mac.bytes()), Some(mac));
        prop_assert_eq!(mac.bytes()[0] & 3, 2);
    }

    /// Any header and any lengths: counted one way or the other, and the next good frame passes.
    #[test]
    fn every_frame_is_accounted_for(frames in prop::collection::vec((any::<[u8; 12]>(), 1..2000usize), 1..40)) {
        let mut world = World::new();
        for (header, len) in &frames {
            world.guest_sends(Header::decode(header), &vec![7; *len]);
            let _ = world.driver.used(QUEUE_TRANSMIT);
        }
        let counters = world.counters();
        prop_assert_eq!(counters.frames_from_guest + counters.lost_from_guest, frames.len() as u64);
        prop_assert_eq!(world.wire.borrow().from_guest.len() as u64, counters.frames_from_guest);
        world.guest_sends(Header::default(), b"good");
        prop_assert_eq!(world.counters().frames_from_guest, counters.frames_from_guest + 1);
    }
}
