//! A device, its guest and its host: takes steps, and holds every call against the watch.

use std::rc::Rc;

use devices::DeviceError;
use devices::VirtioDevice;
use devices::mmio::{Effects, Lifecycle, MmioTransport, QueueSet};
use virtio_wire::mmio::Register;
use virtio_wire::ring::{self, Descriptor};
use virtio_wire::{feature, status};

use crate::driver::{Driver, DriverQueue, Layout, SLOT_HALF};
use crate::guest::{BLOCKS, BUFFERS, Guest, HIGH, LOW_SIZE, PAGE, RINGS};
use crate::input::low_half;
use crate::registers::Registers;
use crate::step::{self, Chain, HostStep, Initialise, RequestStep, Step};
use crate::subjects::{Subject, budget};
use crate::violation::Violation;
use crate::watch::{Budget, Round};

/// Rounds in which notified queues are processed in one step: a guest may feed its own rings with what a device writes.
const MAX_ROUNDS: usize = 40;

/// A device with everything around it.
#[derive(Debug)]
pub struct World<S: Subject> {
    /// The guest's memory.
    pub guest: Rc<Guest>,
    /// The device behind its registers. To be called through the methods of the world only, which watch.
    pub transport: MmioTransport<S::Device>,
    /// The host's side.
    pub subject: S,
    pub(crate) driver: Driver,
    registers: Registers,
    notified: QueueSet,
    nr_queues: u16,
    /// Nothing but well-formed things has happened to the driver's rings since the last start.
    rings_intact: bool,
}

impl<S: Subject> World<S> {
    /// A device that nobody has touched.
    pub fn new(subject: impl FnOnce(&Rc<Guest>) -> (S, S::Device)) -> World<S> {
        let guest = Rc::new(Guest::new(S::NR_QUEUES, S::ASYNCHRONOUS));
        let (subject, device) = subject(&guest);
        let max_sizes = device.queue_max_sizes().to_vec();
        assert_eq!(max_sizes.len(), S::NR_QUEUES, "the subject knows its device");
        World {
            guest,
            transport: MmioTransport::new(device),
            subject,
            driver: Driver::new(S::NR_QUEUES),
            registers: Registers::new(&max_sizes),
            notified: QueueSet::NONE,
            nr_queues: u16::try_from(S::NR_QUEUES).expect("at most 64"),
            rings_intact: false,
        }
    }

    /// Takes a step and looks whether everything is still in order.
    ///
    /// # Errors
    /// What is not.
    pub fn take(&mut self, step: &Step) -> Result<(), Violation> {
        self.perform(step);
        if let Err(broken) = self.subject.check(&self.transport) {
            self.guest.watch_mut().blame(Violation::Broken(broken));
        }
        self.verdict()
    }

    /// Whether something has been wrong so far.
    ///
    /// # Errors
    /// What was.
    pub fn verdict(&self) -> Result<(), Violation> {
        let violation = self.guest.watch_mut().take_violation();
        violation.map_or(Ok(()), Err)
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::Register(register, value) => {
                self.rings_intact &= harmless(*register);
                self.write(register.offset(), &value.to_le_bytes());
            }
            Step::RawWrite(offset, data) => {
                self.rings_intact &= *offset >= virtio_wire::mmio::CONFIG_OFFSET;
                self.write(*offset, data);
            }
            Step::RawRead(offset, len) => self.transport.read(*offset, &mut vec![0; *len]),
            Step::Poke(gpa, bytes) => {
                self.rings_intact &= gpa.saturating_add(bytes.len() as u64) <= RINGS || BUFFERS <= *gpa;
                self.guest.poke(*gpa, bytes);
            }
            Step::Process(queue) => self.process(*queue),
            Step::ProcessNotified => self.process_notified(),
            Step::Host(step) => self.host(step),
            Step::Refuse(gpa) => {
                self.rings_intact &= *gpa >= LOW_SIZE;
                if !S::OWNS_BLOCKS || *gpa < BLOCKS {
                    self.guest.refuse(*gpa);
                }
            }
            Step::Allow(gpa) => {
                if !S::OWNS_BLOCKS || *gpa < BLOCKS {
                    self.guest.allow(*gpa);
                }
            }
            Step::Initialise(how) => self.initialise(*how),
            Step::Chain(chain) => self.chain(chain),
            Step::Request(request) => self.request(request),
            Step::AvailIndex { queue, by } => {
                self.rings_intact = false;
                if let Some(queue) = self.driver.queues.get_mut(usize::from(*queue)) {
                    queue.set_avail_idx(&self.guest, queue.avail_idx.wrapping_add(*by));
                }
            }
            Step::AvailFlags {
                queue,
                flags,
                used_event,
            } => {
                if let Some(queue) = self.driver.queues.get(usize::from(*queue)) {
                    let rings = queue.rings;
                    let event = rings.avail_ring.wrapping_add(ring::used_event_offset(rings.size));
                    self.guest.poke(rings.avail_ring, &flags.to_le_bytes());
                    self.guest.poke(event, &used_event.to_le_bytes());
                }
            }
            Step::SetUpQueue { queue, size, places } => {
                self.rings_intact = false;
                self.write_register(Register::QueueSel, u32::from(*queue));
                self.write_register(Register::QueueReady, 0);
                let rings = step::rings(*size, *places);
                if let Some(slot) = self.driver.queues.get_mut(usize::from(*queue)) {
                    *slot = DriverQueue::at(rings);
                }
                self.set_up(*queue, *size, *places);
            }
        }
    }

    /// The guest writes to the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let was_ready = self.read_register(Register::QueueReady) == 1;
        // A ready queue keeps its registers; a device that is still being reset takes nothing.
        let resetting = self.transport.is_resetting();
        // Rings are looked at when a queue is made ready: where they lie, not what is in them.
        let budget = Budget {
            accesses: 16,
            bytes: 0,
        };
        self.guest.watch_mut().begin(None, budget);
        let effects = self.transport.write(&*self.guest, offset, data);
        self.guest.watch_mut().end(&self.guest);
        if let (Some(register), Ok(word)) = (Register::from_offset(offset), <[u8; 4]>::try_from(data)) {
            let value = u32::from_le_bytes(word);
            if !resetting {
                self.registers.write(register, value, was_ready);
            }
            match register {
                Register::QueueReady if !resetting => self.look_at_ready(was_ready, value),
                Register::Status if self.read_register(Register::Status) == 0 => self.was_reset(),
                Register::Status if self.transport.is_resetting() => self.queues_stopped(),
                _ => {}
            }
        }
        self.see_to(effects);
    }

    /// QueueReady was written. It reads as 1 until the last chain that the device keeps is back, but the queue stops now.
    fn look_at_ready(&mut self, was_ready: bool, written: u32) {
        let Some(queue) = self.registers.selected() else {
            return;
        };
        let ready = self.read_register(Register::QueueReady) == 1;
        let known = self.guest.watch().is_ready(queue);
        if ready && !was_ready {
            match self.registers.rings(&self.guest, queue) {
                Ok(rings) => self.guest.watch_mut().set_rings(queue, Some(rings)),
                Err(why) => self
                    .guest
                    .watch_mut()
                    .blame(Violation::QueueAccepted { queue, why }),
            }
        } else if known && (!ready || written == 0) {
            self.guest.watch_mut().set_rings(queue, None);
        }
    }

    fn was_reset(&mut self) {
        self.registers.reset();
        self.queues_stopped();
    }

    fn queues_stopped(&mut self) {
        for queue in 0..self.nr_queues {
            self.guest.watch_mut().set_rings(queue, None);
        }
    }

    /// A register of the window.
    pub fn read_register(&self, register: Register) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register.offset(), &mut word);
        u32::from_le_bytes(word)
    }

    /// The guest writes a register.
    pub fn write_register(&mut self, register: Register, value: u32) {
        self.write(register.offset(), &value.to_le_bytes());
    }

    /// The host's side does something.
    pub fn host(&mut self, step: &HostStep) {
        self.with_host(|subject, transport, guest| subject.host(step, transport, guest));
    }

    /// A call into the device from the host's side, watched; within the bound of a queue of 256 entries.
    pub fn with_host(
        &mut self,
        call: impl FnOnce(&mut S, &mut MmioTransport<S::Device>, &Guest) -> Result<Effects, DeviceError>,
    ) {
        let event_idx = self.transport.negotiated_features() & feature::RING_EVENT_IDX != 0;
        self.guest.watch_mut().begin(None, budget::<S>(256));
        let result = call(&mut self.subject, &mut self.transport, &self.guest);
        self.guest.watch_mut().end(&self.guest);
        match result {
            Ok(effects) => {
                let untold = self.guest.watch().uninterrupted(&self.guest);
                if let Some(queue) = untold.filter(|_| !event_idx && !effects.interrupt) {
                    let violation = Violation::NotInterrupted { queue };
                    self.guest.watch_mut().blame(violation);
                }
                if effects.lifecycle == Some(Lifecycle::Reset) {
                    self.was_reset();
                }
                self.see_to(effects);
            }
            Err(error) => self.guest.watch_mut().blame(Violation::HostError(error)),
        }
    }

    /// The host processes a queue.
    pub fn process(&mut self, queue: u16) {
        let size = self.guest.watch().rings_of(queue).map_or(0, |rings| rings.size);
        let event_idx = self.transport.negotiated_features() & feature::RING_EVENT_IDX != 0;
        self.guest.watch_mut().begin(Some(queue), budget::<S>(size));
        let result = self.transport.process_queue(&*self.guest, queue);
        self.guest.watch_mut().end(&self.guest);
        match result {
            Ok(effects) => {
                let round = Round {
                    notified_again: effects.notified.contains(queue),
                    interrupt: effects.interrupt,
                    live: self.transport.is_live(),
                    may_hold: S::ASYNCHRONOUS || !self.transport.is_live(),
                    event_idx,
                };
                self.guest.watch_mut().judge(&self.guest, queue, round);
                self.see_to(effects);
            }
            Err(error) => self.guest.watch_mut().blame(Violation::HostError(error)),
        }
    }

    /// The host processes what was notified until nothing is.
    pub fn process_notified(&mut self) {
        for _ in 0..MAX_ROUNDS {
            if self.notified.is_empty() {
                break;
            }
            for queue in std::mem::take(&mut self.notified).iter() {
                self.process(queue);
            }
        }
    }

    fn see_to(&mut self, effects: Effects) {
        self.notified = self.notified.and(effects.notified);
        let bits = self.read_register(Register::Status);
        let stage = bits & 0xf;
        let known = status::FAILED | status::DEVICE_NEEDS_RESET | 0xf;
        if ![0, 1, 3, 11, 15].contains(&stage) || bits & !known != 0 {
            self.guest.watch_mut().blame(Violation::Status { bits });
        }
        if effects.interrupt && self.read_register(Register::InterruptStatus) & 3 == 0 {
            self.guest.watch_mut().blame(Violation::Unreasoned);
        }
    }

    /// A driver starts over: reset, negotiation, every queue in its own place. Its own memory is there.
    pub fn initialise(&mut self, how: Initialise) {
        (0..LOW_SIZE / PAGE).for_each(|page| self.guest.allow(page * PAGE));
        let device = self.transport.device();
        let offered =
            device.features() | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC | feature::VERSION_1;
        let needed = device.required_features() | feature::VERSION_1;
        let features = offered & (how.features | needed);
        let max_sizes = device.queue_max_sizes().to_vec();
        self.write_register(Register::Status, status::RESET);
        self.write_register(Register::Status, 1);
        self.write_register(Register::Status, 3);
        for (word, bits) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.write_register(Register::DriverFeaturesSel, word);
            self.write_register(Register::DriverFeatures, low_half(bits));
        }
        self.write_register(Register::Status, 11);
        for (index, max_size) in (0..).zip(max_sizes) {
            let size = (1 << how.order.min(7)).min(max_size);
            let queue = DriverQueue::home(index.into(), size);
            queue.clear(&self.guest);
            self.driver.queues[usize::from(index)] = queue;
            let rings = queue.rings;
            let places = [rings.descriptor_table, rings.avail_ring, rings.used_ring];
            self.set_up(index, size.into(), places);
        }
        self.write_register(Register::Status, 15);
        self.rings_intact = true;
        self.guest.watch_mut().rings_overwritten = false;
    }

    /// Whether the rings of the last start are as a good driver leaves them, and a good request fits in.
    pub(crate) fn is_intact(&self) -> bool {
        let roomy = self.driver.queues.iter().all(|queue| queue.rings.size >= 4);
        self.rings_intact && roomy && !self.guest.watch().rings_overwritten && self.transport.is_live()
    }

    /// All memory is there, but for what a memory device has taken away.
    pub(crate) fn allow_all(&mut self) {
        let end = if S::OWNS_BLOCKS {
            BLOCKS
        } else {
            BLOCKS + 16 * PAGE
        };
        let pages = (0..LOW_SIZE).step_by(0x1000).chain((HIGH..end).step_by(0x1000));
        pages.for_each(|gpa| self.guest.allow(gpa));
    }

    fn set_up(&mut self, queue: u16, size: u32, places: [u64; 3]) {
        self.write_register(Register::QueueSel, queue.into());
        self.write_register(Register::QueueSize, size);
        let registers = [
            (Register::QueueDescLow, Register::QueueDescHigh),
            (Register::QueueDriverLow, Register::QueueDriverHigh),
            (Register::QueueDeviceLow, Register::QueueDeviceHigh),
        ];
        for ((low, high), gpa) in registers.into_iter().zip(places) {
            self.write_register(low, low_half(gpa));
            self.write_register(high, low_half(gpa >> 32));
        }
        self.write_register(Register::QueueReady, 1);
    }

    fn chain(&mut self, chain: &Chain) {
        let Some(queue) = self.driver.queues.get_mut(usize::from(chain.queue)) else {
            return;
        };
        let head = match chain.indirect {
            None => queue.write(&self.guest, &chain.descriptors),
            Some(table) => {
                let bytes: Vec<u8> = chain.descriptors.iter().flat_map(Descriptor::encode).collect();
                self.rings_intact &= table.saturating_add(bytes.len() as u64) <= RINGS || BUFFERS <= table;
                self.guest.poke(table, &bytes);
                let indirect = Descriptor {
                    addr: table,
                    len: u32::try_from(bytes.len()).expect("a few descriptors"),
                    flags: ring::DESC_F_INDIRECT,
                    next: 0,
                };
                queue.write(&self.guest, &[indirect])
            }
        };
        queue.make_available(&self.guest, chain.head.unwrap_or(head));
        self.write_register(Register::QueueNotify, chain.queue.into());
    }

    fn request(&mut self, request: &RequestStep) {
        let body = self.subject.body(request);
        let layout = Layout {
            cuts: request.cuts,
            indirect: self.indirect() && request.cuts & 0x10 != 0,
        };
        let guest = Rc::clone(&self.guest);
        self.driver
            .offer(&guest, body.queue, &body.readable, body.writable, layout);
        self.write_register(Register::QueueNotify, body.queue.into());
    }

    /// Whether indirect tables were negotiated.
    fn indirect(&self) -> bool {
        self.transport.negotiated_features() & feature::RING_INDIRECT_DESC != 0
    }

    /// A driver's good request: offered, notified, processed, returned. Gives back what the device has written.
    ///
    /// # Errors
    /// What happened instead.
    pub fn exchange(&mut self, queue: u16, readable: &[u8], writable: usize) -> Result<Vec<u8>, String> {
        self.offer(queue, readable, writable)?.collect(self)
    }

    /// The first half of [`Self::exchange`]: offers and notifies.
    ///
    /// # Errors
    /// The queue has no room for it.
    pub fn offer(&mut self, queue: u16, readable: &[u8], writable: usize) -> Result<Pending, String> {
        assert!(
            readable.len() <= SLOT_HALF && writable <= SLOT_HALF,
            "a good request fits"
        );
        let guest = Rc::clone(&self.guest);
        self.driver.queues[usize::from(queue)].used(&guest);
        let layout = Layout {
            cuts: 0,
            indirect: self.indirect(),
        };
        let offered = self
            .driver
            .offer(&guest, queue, readable, writable, layout)
            .ok_or("no room for its descriptors")?;
        self.write_register(Register::QueueNotify, queue.into());
        Ok(Pending {
            queue,
            head: offered.head,
            gpa: offered.writable,
            room: writable,
        })
    }
}

/// A good request that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    queue: u16,
    head: u16,
    gpa: u64,
    room: usize,
}

impl Pending {
    /// Lets the host work, and takes the chain back with what the device has written.
    ///
    /// # Errors
    /// It did not come back, or not as it should.
    pub fn collect<S: Subject>(self, world: &mut World<S>) -> Result<Vec<u8>, String> {
        world.process_notified();
        let used = world.driver.queues[usize::from(self.queue)].used(&world.guest);
        let element = used
            .iter()
            .rev()
            .find(|element| element.id == u32::from(self.head))
            .ok_or_else(|| {
                let fault = world.transport.last_guest_fault();
                format!("queue {} returned {used:?}, last fault {fault:?}", self.queue)
            })?;
        let len = usize::try_from(element.len).unwrap_or(usize::MAX);
        if len > self.room {
            return Err(format!("{len} bytes in a buffer of {}", self.room));
        }
        Ok((self.gpa..)
            .take(len)
            .map(|gpa| world.guest.peek::<1>(gpa)[0])
            .collect())
    }
}

/// Registers that a driver may write at any time without touching its queues.
fn harmless(register: Register) -> bool {
    matches!(
        register,
        Register::QueueNotify
            | Register::InterruptAck
            | Register::DeviceFeaturesSel
            | Register::DriverFeaturesSel
            | Register::ShmSel
    )
}
