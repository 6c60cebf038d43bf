//! A driver that keeps to no rule: random chains on every queue, random writes to the configuration, resets in between.
//! Nothing panics, nothing outside the guest's memory is given back, and a good request afterwards is served.

use proptest::prelude::*;
use virtio_wire::mmio::Register;

use super::*;
use crate::testing::Buffer;

#[derive(Clone, Debug)]
enum Act {
    Chain(u16, Vec<(bool, u64, u32)>),
    Poke(u64, Vec<u8>),
    WriteConfig(usize, Vec<u8>),
    Register(u32, u32),
    Refuse(u32, u32),
    Target(u32),
    AskStatistics,
    StartHinting,
    StopHinting,
    Restart(u64),
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => PatchyMemory::BASE..PatchyMemory::END,
        2 => Just(MESSAGE),
        1 => any::<u64>(),
        1 => (u64::MAX - 0x2000)..u64::MAX,
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let len = prop_oneof![4 => 0..64u32, 2 => 0..0x8000u32, 1 => any::<u32>()];
    let buffers = prop::collection::vec((any::<bool>(), address(), len), 1..6);
    prop_oneof![
        8 => (0..6u16, buffers).prop_map(|(queue, buffers)| Act::Chain(queue, buffers)),
        4 => (0..0x100u64, prop::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Act::Poke(MESSAGE + at, bytes)),
        2 => (0..24usize, prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Act::WriteConfig(at, bytes)),
        2 => (0..0x40u32, any::<u32>()).prop_map(|(register, value)| Act::Register(register * 4, value)),
        1 => (32..PAGES, 1..8u32).prop_map(|(first, count)| Act::Refuse(first, count)),
        1 => any::<u32>().prop_map(Act::Target),
        1 => Just(Act::AskStatistics),
        1 => Just(Act::StartHinting),
        1 => Just(Act::StopHinting),
        1 => (0..64u64).prop_map(Act::Restart),
    ]
}

fn process(driver: &mut BalloonDriver, effects: Effects) {
    let mut due = effects.notified;
    while !due.is_empty() {
        for queue in std::mem::take(&mut due).iter() {
            due = due.and(
                driver
                    .transport
                    .process_queue(&driver.mem, queue)
                    .unwrap()
                    .notified,
            );
        }
    }
}

fn perform(driver: &mut BalloonDriver, act: Act) {
    let effects = match act {
        Act::Chain(queue, buffers) => {
            let chain: Vec<Buffer> = buffers
                .into_iter()
                .map(|(write, gpa, len)| {
                    if write {
                        writable(gpa, len)
                    } else {
                        readable(gpa, len)
                    }
                })
                .collect();
            if queue < 5 {
                driver.offer(queue, &chain);
            }
            driver.write(Register::QueueNotify, queue.into())
        }
        Act::Poke(gpa, bytes) => {
            driver.mem.poke(gpa, &bytes);
            Effects::NONE
        }
        Act::WriteConfig(at, bytes) => {
            driver.write_config(at, &bytes);
            Effects::NONE
        }
        Act::Register(offset, value) => {
            driver
                .transport
                .write(&driver.mem, offset.into(), &value.to_le_bytes())
        }
        Act::Refuse(first, count) => {
            let bytes = bytes_of(first..(first + count).min(PAGES));
            driver.transport.forget_pages(bytes.start, bytes.end);
            driver.mem.refuse(bytes);
            Effects::NONE
        }
        Act::Target(pages) => driver.transport.set_balloon_target(pages),
        Act::AskStatistics => driver.transport.request_statistics(),
        Act::StartHinting => driver.transport.start_hinting(),
        Act::StopHinting => driver.transport.stop_hinting(),
        Act::Restart(features) => {
            driver.initialise(features | virtio_wire::feature::VERSION_1);
            Effects::NONE
        }
    };
    process(driver, effects);
}

proptest! {
    #[test]
    fn nothing_a_driver_does_breaks_the_balloon(acts in prop::collection::vec(act(), 1..80)) {
        // The backend of the tests panics when it is asked for memory that the guest does not have.
        let (mut driver, host) = balloon_driver(0);
        for act in acts {
            perform(&mut driver, act);
            let balloon = driver.balloon();
            prop_assert!(balloon.pages() <= PAGES.into());
            prop_assert_eq!(balloon.config().num_pages, balloon.target());
        }
        driver.mem.refusals().borrow_mut().clear();
        let features = driver.balloon().features() | virtio_wire::feature::VERSION_1;
        driver.initialise(features);
        // No page waits for others.
        let _ = driver.transport.set_balloon_target(2);
        host.take();
        driver.send_pages(Queue::Inflate, &[40, 41]);
        prop_assert_eq!(host.take(), [bytes_of(40..42)]);
        prop_assert_eq!(driver.balloon().pages(), 2);
    }
}
