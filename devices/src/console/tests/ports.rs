//! Several ports: what the driver is told, in which order, and that each port has streams of its own.

use proptest::prelude::*;
use virtio_wire::console::{Control, event};

use super::*;

const CONTROL_BUFFERS: u64 = PatchyMemory::BASE + 0x10000;

fn name(text: &str) -> PortName {
    PortName::new(text).unwrap()
}

fn two_named() -> Console {
    Console::with_ports(None, vec![name("agent"), name("log")])
}

fn live_ports() -> Driver<Console> {
    let mut driver = Driver::new(two_named());
    driver.initialise(common::VERSION_1 | console::feature::MULTIPORT);
    driver
}

fn tell(driver: &mut Driver<Console>, id: u32, event: u16, value: u16) {
    let at = BUFFER + 0x800;
    driver.mem.poke(at, &Control { id, event, value }.encode());
    driver.offer(QUEUE_CONTROL_TRANSMIT, &[readable(at, 8)]);
    let _ = driver.kick(QUEUE_CONTROL_TRANSMIT);
    let _ = driver.used(QUEUE_CONTROL_TRANSMIT);
}

/// What the device says until it has nothing more to say: port, event, value, and the name if there is one.
fn heard(driver: &mut Driver<Console>) -> Vec<(u32, u16, u16, String)> {
    let mut messages = Vec::new();
    loop {
        // A buffer that was offered before and not used is still there.
        let at = CONTROL_BUFFERS;
        driver.offer(QUEUE_CONTROL_RECEIVE, &[writable(at, 64)]);
        let _ = driver.kick(QUEUE_CONTROL_RECEIVE);
        let used = driver.used(QUEUE_CONTROL_RECEIVE);
        let [used] = used[..] else {
            assert!(used.is_empty());
            // It is taken back by a reset only; none of the tests goes on after it.
            return messages;
        };
        let Control { id, event, value } = Control::decode(&driver.mem.peek(at));
        let text = driver.mem.peek::<56>(at + 8);
        let len = usize::try_from(used.len).unwrap() - Control::SIZE;
        messages.push((id, event, value, String::from_utf8(text[..len].to_vec()).unwrap()));
    }
}

#[test]
fn a_console_without_named_ports_is_as_it_always_was() {
    let driver = Driver::new(Console::new(None));
    assert_eq!(driver.queues.len(), 2);
    let offered = driver.read(Register::DeviceFeatures);
    assert_eq!(u64::from(offered) & console::feature::MULTIPORT, 0);
}

#[test]
fn the_driver_is_told_of_all_ports_then_of_their_kinds_and_names() {
    let mut driver = live_ports();
    let mut config = [0; 8];
    driver.transport.read(CONFIG_OFFSET, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 3, 0, 0, 0]);
    let _ = driver.transport.set_host_open(2, true);
    tell(&mut driver, u32::MAX, event::DEVICE_READY, 1);
    for port in 0..3 {
        tell(&mut driver, port, event::PORT_READY, 1);
    }
    let said = heard(&mut driver);
    let expected = [
        (0, event::PORT_ADD, 1, ""),
        (1, event::PORT_ADD, 1, ""),
        (2, event::PORT_ADD, 1, ""),
        (0, event::CONSOLE_PORT, 1, ""),
        (1, event::PORT_NAME, 1, "agent"),
        (2, event::PORT_NAME, 1, "log"),
        (0, event::PORT_OPEN, 1, ""),
        (2, event::PORT_OPEN, 1, ""),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(id, event, value, name)| (id, event, value, name.to_owned()))
        .collect();
    assert_eq!(said, expected);
}

#[test]
fn a_host_that_opens_or_closes_a_port_later_is_announced() {
    let mut driver = live_ports();
    assert_eq!(
        driver.transport.set_host_open(1, true),
        Effects::NONE,
        "nobody listens yet"
    );
    assert_eq!(driver.transport.set_host_open(1, false), Effects::NONE);
    tell(&mut driver, 1, event::PORT_READY, 1);
    driver.offer(QUEUE_CONTROL_RECEIVE, &[writable(CONTROL_BUFFERS, 64)]);
    let _ = driver.kick(QUEUE_CONTROL_RECEIVE);
    assert_eq!(driver.used(QUEUE_CONTROL_RECEIVE).len(), 1, "its name");
    let effects = driver.transport.set_host_open(1, true);
    assert_eq!(effects.notified, QueueSet::one(QUEUE_CONTROL_RECEIVE));
    let said = heard(&mut driver);
    assert_eq!(said, [(1, event::PORT_OPEN, 1, String::new())]);
}

#[test]
fn every_port_has_streams_of_its_own() {
    let mut driver = live_ports();
    driver.mem.poke(BUFFER, b"to the log");
    driver.offer(7, &[readable(BUFFER, 10)]);
    let _ = driver.kick(7);
    assert_eq!(take(&mut driver, 100), b"");
    assert_eq!(driver.transport.take_from_port(1, 100).0, b"");
    let (bytes, effects) = driver.transport.take_from_port(2, 100);
    assert_eq!(
        (&bytes[..], effects.notified),
        (&b"to the log"[..], QueueSet::one(7))
    );

    driver.offer(4, &[writable(BUFFER + 0x100, 64)]);
    let (accepted, effects) = driver.transport.push_to_port(1, b"to the agent");
    assert_eq!((accepted, effects.notified), (12, QueueSet::one(4)));
    let _ = carry_out(&mut driver, effects);
    assert!(driver.used(4).is_empty(), "no program of the guest has it open");
    tell(&mut driver, 1, event::PORT_OPEN, 1);
    assert_eq!(driver.used(4).len(), 1, "it waited until one has");
    assert_eq!(&driver.mem.peek::<12>(BUFFER + 0x100), b"to the agent");
    assert!(driver.transport.device().port(1).unwrap().guest_open);
    assert_eq!(driver.transport.push_to_port(9, b"x"), (0, Effects::NONE));
    assert_eq!(driver.transport.device().port(9), None);
}

#[test]
fn a_driver_that_knows_of_one_port_only_has_that_one() {
    let mut driver = Driver::new(two_named());
    driver.initialise(common::VERSION_1);
    assert!(send(&mut driver, b"help\n").interrupt);
    assert_eq!(take(&mut driver, 10), b"help\n");
    tell(&mut driver, 0, event::DEVICE_READY, 1);
    driver.mem.poke(BUFFER, b"nowhere");
    driver.offer(5, &[readable(BUFFER, 7)]);
    let _ = driver.kick(5);
    assert_eq!(driver.transport.device().port(1).unwrap().from_guest_len, 0);
}

#[test]
fn a_bad_control_buffer_loses_no_message() {
    let mut driver = live_ports();
    tell(&mut driver, 1, event::PORT_READY, 1);
    let gone = PatchyMemory::BASE + 0x20000;
    driver.mem.refuse(gone..gone + 0x1000);
    driver.offer(QUEUE_CONTROL_RECEIVE, &[writable(gone, 64)]);
    driver.offer(QUEUE_CONTROL_RECEIVE, &[writable(CONTROL_BUFFERS, 9)]);
    driver.offer(QUEUE_CONTROL_RECEIVE, &[readable(CONTROL_BUFFERS, 64)]);
    let _ = driver.kick(QUEUE_CONTROL_RECEIVE);
    assert_eq!(driver.used(QUEUE_CONTROL_RECEIVE).len(), 3);
    assert_eq!(driver.transport.guest_faults(), 3);
    assert_eq!(heard(&mut driver), [(1, event::PORT_NAME, 1, "agent".to_owned())]);
}

#[test]
fn a_name_is_one_that_a_file_can_have() {
    for good in ["a", "org.qemu.guest_agent.0", "A-1"] {
        assert_eq!(
            PortName::new(good).map(|name| name.to_string()),
            Some(good.to_owned())
        );
    }
    for bad in ["", ".", "..", "a/b", "a b", "a\n", "ä", &"x".repeat(33)] {
        assert_eq!(PortName::new(bad), None, "{bad:?}");
    }
}

proptest! {
    /// However a driver asks: what it is told stays a handful of messages, and a port works afterwards.
    #[test]
    fn asking_again_and_again_makes_nothing_grow(messages in prop::collection::vec((0..5u32, 0..9u16, 0..3u16), 1..60)) {
        let mut driver = live_ports();
        for (id, event, value) in messages {
            tell(&mut driver, id, event, value);
        }
        // Three ports, each of which is there, has a kind, and is open or not.
        prop_assert!(heard(&mut driver).len() <= 9);
        prop_assert_eq!(driver.status(), 15);
        driver.mem.poke(BUFFER, b"still here");
        driver.offer(5, &[readable(BUFFER, 10)]);
        let _ = driver.kick(5);
        prop_assert_eq!(driver.transport.take_from_port(1, 100).0, b"still here");
    }
}
