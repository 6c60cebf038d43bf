//! A guest and a host that keep to the rules, in random steps: every byte arrives, in order, and nobody waits for ever.

use proptest::prelude::*;
use virtio_wire::vsock::shutdown;

use super::*;

/// A step of either end.
#[derive(Debug, Clone)]
enum Step {
    /// The guest sends as much of this as it has credit for.
    Send(usize),
    /// The far end writes.
    Write(usize),
    /// The far end can take so much.
    Room(usize),
    /// The guest reads so much of what has come, and tells.
    Read(usize),
    /// The guest takes packets.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..70_000usize).prop_map(Step::Send),
        (1..20_000usize).prop_map(Step::Write),
        (1..70_000usize).prop_map(Step::Room),
        (1..9_000usize).prop_map(Step::Read),
        Just(Step::Take),
    ]
}

struct World {
    guest: Guest,
    key: StreamKey,
    far: Rc<RefCell<Far>>,
    sent: Vec<u8>,
    written: Vec<u8>,
    arrived: Vec<u8>,
    /// The device's credit as the guest knows it.
    device_alloc: u32,
    device_fwd_cnt: u32,
    ended: bool,
}

impl World {
    fn new() -> World {
        let mut guest = Guest::without_buffers();
        guest.offer(3);
        guest.buf_alloc = 10_000;
        let (key, far) = guest.connect(1000, 5);
        far.borrow_mut().room = 0;
        World {
            guest,
            key,
            far,
            sent: Vec::new(),
            written: Vec::new(),
            arrived: Vec::new(),
            device_alloc: TO_HOST_LIMIT,
            device_fwd_cnt: 0,
            ended: false,
        }
    }

    fn credit(&self) -> usize {
        let under_way = u32::try_from(self.sent.len()).unwrap() - self.device_fwd_cnt;
        (self.device_alloc - under_way) as usize
    }

    fn take_step(&mut self, step: &Step) {
        match *step {
            Step::Send(len) => {
                let bytes = pattern_from(self.sent.len(), len.min(self.credit()).min(60_000));
                if !bytes.is_empty() {
                    self.guest.send_payload(self.key, &bytes);
                    self.sent.extend(bytes);
                }
            }
            Step::Write(len) => {
                let bytes = pattern_from(self.written.len(), len);
                self.guest.host_sends(self.key, &self.far, &bytes);
                self.written.extend(bytes);
            }
            Step::Room(len) => {
                self.far.borrow_mut().room = len;
                self.guest.changed(self.key);
            }
            Step::Read(len) => {
                let unread = self.arrived.len() - self.guest.fwd_cnt as usize;
                self.guest.fwd_cnt += u32::try_from(len.min(unread)).unwrap();
                self.guest.send(self.key, op::CREDIT_UPDATE);
            }
            Step::Take => {
                for (header, payload) in self.guest.received() {
                    (self.device_alloc, self.device_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
                    match header.op {
                        op::RW => self.arrived.extend(payload),
                        op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
                        op::SHUTDOWN | op::RST => self.ended = true,
                        op => panic!("operation {op}"),
                    }
                }
            }
        }
        let _ = self.guest.driver.used(QUEUE_TRANSMIT);
        let unread = self.arrived.len() - self.guest.fwd_cnt as usize;
        assert!(
            unread <= self.guest.buf_alloc as usize,
            "more than the guest can hold"
        );
        assert!(!self.ended);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn every_byte_arrives_in_order_whoever_is_slow(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.take_step(step);
        }
        // Now nobody is slow any more: each round moves all that the guest can hold.
        for _ in 0..world.written.len() / world.guest.buf_alloc as usize + 3 {
            for step in [Step::Room(usize::MAX), Step::Take, Step::Read(usize::MAX)] {
                world.take_step(&step);
            }
        }
        prop_assert_eq!(&world.far.borrow().incoming, &world.sent);
        prop_assert_eq!(&world.arrived, &world.written);
        prop_assert!(world.credit() >= TO_HOST_LIMIT as usize / 2, "the guest was never told that all went on");
        world.guest.shut_down(world.key, shutdown::SEND | shutdown::RECEIVE);
        let last = world.guest.ops().pop();
        prop_assert_eq!(last, Some((op::RST, 0)));
        prop_assert_eq!(world.guest.streams(), 0);
    }
}
