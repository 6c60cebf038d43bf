//! Anything at all written to the registers and to the memory of the rings: no call panics or runs without end, and what
//! the device does stays inside the rules.

use proptest::prelude::*;
use virtio_wire::mmio::Register;
use virtio_wire::{feature, status};

use super::*;
use crate::testing::PatchyMemory;

#[derive(Clone, Debug)]
enum Step {
    /// A register write of the right width.
    Register(Register, u32),
    /// A write of any width anywhere in the window or beyond.
    Raw(u64, Vec<u8>),
    /// A read of any width.
    Read(u64, usize),
    /// Random bytes where the rings may be.
    Memory(u64, Vec<u8>),
    /// The event loop processes a queue.
    Process(u16),
    /// The host changes the configuration.
    Configure,
    /// From now on the device keeps chains, or no longer does.
    Keep(bool),
    /// The device is done with up to so many chains.
    GiveBack(usize),
    /// A range of memory is unplugged.
    Refuse(u64),
    /// A driver's whole sequence, so that random steps also meet a live device.
    Initialise,
}

/// Values that mean something more often than chance would have it.
fn value() -> impl Strategy<Value = u32> {
    let ring = 0x10_0000u32..0x10_2000;
    prop_oneof![
        0u32..20,
        ring.prop_map(|gpa| gpa & !0xf),
        Just(15),
        Just(11),
        Just(0),
        any::<u32>()
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let register = (0..Register::ALL.len()).prop_map(|at| Register::ALL[at]);
    let bytes = prop::collection::vec(any::<u8>(), 0..9);
    let ring_byte = PatchyMemory::BASE..PatchyMemory::BASE + 0x2000;
    prop_oneof![
        8 => (register, value()).prop_map(|(register, value)| Step::Register(register, value)),
        2 => (prop_oneof![0u64..0x120, any::<u64>()], bytes.clone()).prop_map(|(offset, data)| Step::Raw(offset, data)),
        2 => (prop_oneof![0u64..0x120, any::<u64>()], 0usize..10).prop_map(|(offset, len)| Step::Read(offset, len)),
        6 => (ring_byte, bytes).prop_map(|(gpa, bytes)| Step::Memory(gpa, bytes)),
        6 => (0u16..3).prop_map(Step::Process),
        1 => Just(Step::Configure),
        1 => any::<bool>().prop_map(Step::Keep),
        2 => (0usize..4).prop_map(Step::GiveBack),
        1 => (0u64..0x100).prop_map(Step::Refuse),
        3 => Just(Step::Initialise),
    ]
}

fn take(driver: &mut EchoDriver, step: &Step) -> Effects {
    match step {
        Step::Register(register, value) => driver.write(*register, *value),
        Step::Raw(offset, data) => driver.transport.write(&driver.mem, *offset, data),
        Step::Read(offset, len) => {
            driver.transport.read(*offset, &mut vec![0; *len]);
            Effects::NONE
        }
        Step::Memory(gpa, bytes) => {
            driver.mem.poke(*gpa, bytes);
            Effects::NONE
        }
        Step::Process(queue) => {
            let served = driver.transport.device().served.len();
            let effects = driver.transport.process_queue(&driver.mem, *queue).unwrap();
            assert!(
                driver.transport.device().served.len() - served <= 32,
                "a call is bounded by the queue's size"
            );
            effects
        }
        Step::Configure => driver.transport.configure(|_| true),
        Step::Keep(keeps) => {
            driver.transport.device_mut().keeps = *keeps;
            Effects::NONE
        }
        Step::GiveBack(count) => driver.give_back(*count),
        Step::Refuse(page) => {
            let gpa = PatchyMemory::BASE + page * 0x1000;
            driver.mem.refuse(gpa..gpa + 0x1000);
            Effects::NONE
        }
        Step::Initialise => {
            driver.negotiate(feature::VERSION_1 | NEEDED);
            if driver.transport.is_resetting() {
                let all = driver.give_back(usize::MAX);
                assert_eq!(all.lifecycle, Some(Lifecycle::Reset));
                driver.negotiate(feature::VERSION_1 | NEEDED);
            }
            let effects = driver.set_up_queue(0).then(driver.set_up_queue(1));
            effects.then(driver.write(Register::Status, 15))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn nothing_the_guest_writes_breaks_the_device(steps in prop::collection::vec(step(), 1..80)) {
        let mut driver = Driver::new(Echo::default());
        for step in &steps {
            let served_before = driver.transport.device().served.len();
            let live_before = driver.transport.is_live();
            let effects = take(&mut driver, step);

            let bits = driver.status();
            let chain = bits & 0xf;
            prop_assert!([0, 1, 3, 11, 15].contains(&chain), "status {bits:#x} after {step:?}");
            let resetting = driver.transport.is_resetting();
            prop_assert_eq!(driver.transport.is_live(), bits == status::DRIVER_OK | 11 && !resetting);
            prop_assert!(!resetting || !driver.transport.device().kept.is_empty());
            prop_assert!(live_before || driver.transport.device().served.len() == served_before);
            let interrupts = driver.read(Register::InterruptStatus);
            prop_assert!(!effects.interrupt || interrupts != 0, "an interrupt has a reason");
            prop_assert_eq!(interrupts & !3, 0);
            if effects.lifecycle == Some(Lifecycle::NeedsReset) {
                prop_assert!(bits & status::DEVICE_NEEDS_RESET != 0);
            }
        }
        driver.transport.device_mut().keeps = false;
        driver.transport.device_mut().puts_back = false;
        let _ = driver.give_back(usize::MAX);
        // However it was left: a driver that starts over, in memory that is there, is served.
        let mut fresh = Driver::new(Echo::default());
        std::mem::swap(&mut fresh.transport, &mut driver.transport);
        fresh.initialise(feature::VERSION_1 | NEEDED);
        fresh.offer(1, &[crate::testing::readable(0, 1)]);
        let _ = fresh.kick(1);
        prop_assert_eq!(fresh.used(1).len(), 1);
    }
}
