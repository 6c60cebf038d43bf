//! The event loop: the one thread that processes virtio queues, waits for the devices' host descriptors, takes the
//! user's input, and hears the signals that end a VM.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::devices::{DeviceEvent, MachineDevice, OnLoop};
use super::input::SerialInput;
use super::serial::SerialPort;
use super::shared::Shared;
use super::virtio::Shell;
use super::{VmError, VmExit};
use crate::terminal::{EndSignals, OutputWriter};

type Subscriber = Box<dyn MutEventSubscriber + Send>;

const STACK: usize = 256 << 10;

/// The loop, before it runs.
pub(super) struct EventLoop {
    manager: EventManager<Subscriber>,
    shared: Arc<Shared>,
}

impl EventLoop {
    /// A loop that ends when the VM does.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Self, VmError> {
        let mut manager = EventManager::new().map_err(VmError::EventLoop)?;
        manager.add_subscriber(Box::new(EndWatch(Arc::clone(shared))) as Subscriber);
        for device in shared.devices.iter() {
            manager.add_subscriber(Box::new(DeviceWatch {
                device: Arc::clone(device),
                shell: device.shell(),
                shared: Arc::clone(shared),
            }));
        }
        Ok(Self {
            manager,
            shared: Arc::clone(shared),
        })
    }

    /// Also hears signals.
    pub(super) fn hear(&mut self, signals: EndSignals) {
        self.manager.add_subscriber(Box::new(SignalWatch {
            signals,
            shared: Arc::clone(&self.shared),
        }));
    }

    /// Also takes standard input for the guest's serial port.
    pub(super) fn take_input(&mut self, com1: &Arc<SerialPort>, screen: OutputWriter) {
        let input = SerialInput::new(Arc::clone(com1), Arc::clone(&self.shared), screen);
        self.manager.add_subscriber(Box::new(input));
    }

    /// Runs it on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(self) -> Result<JoinHandle<()>, VmError> {
        let thread = thread::Builder::new().name("events".into()).stack_size(STACK);
        thread
            .spawn(move || self.run())
            .map_err(VmError::host("start the event loop"))
    }

    fn run(mut self) {
        while !self.shared.lifecycle.is_ending() {
            if let Err(error) = self.manager.run() {
                self.shared.lifecycle.end(Err(VmError::EventLoop(error)));
            }
        }
    }
}

/// Adds a source of events; a failure ends the VM, which cannot work without it.
pub(super) fn listen(ops: &mut EventOps, events: Events, shared: &Shared) {
    if let Err(error) = ops.add(events) {
        shared.lifecycle.end(Err(VmError::EventLoop(error)));
    }
}

/// Wakes the loop when the VM ends.
struct EndWatch(Arc<Shared>);

impl MutEventSubscriber for EndWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, Events::new(&self.0.ended, EventSet::IN), &self.0);
    }
}

/// Ends the VM on a signal.
struct SignalWatch {
    signals: EndSignals,
    shared: Arc<Shared>,
}

impl MutEventSubscriber for SignalWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if self.signals.arrived() {
            self.shared.lifecycle.end(Ok(VmExit::Stopped));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, Events::new(&self.signals, EventSet::IN), &self.shared);
    }
}

/// Processes the queues of one device, and hears its host descriptors.
struct DeviceWatch {
    device: Arc<dyn MachineDevice>,
    shell: Arc<dyn Shell>,
    shared: Arc<Shared>,
}

impl DeviceWatch {
    fn process_queue(&self, queue: u16, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        let Some(event) = self.shell.notifications().get(usize::from(queue)) else {
            return Ok(());
        };
        // Nothing to read is a notification that was already served.
        let _ = event.read();
        let config_changed = self.shell.process(queue)?;
        self.device.after_queue(queue, config_changed, on)
    }
}

impl MutEventSubscriber for DeviceWatch {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut on = OnLoop::new(&self.shared, ops);
        let done = match DeviceEvent::from(events.data()) {
            DeviceEvent::Queue(queue) => self.process_queue(queue, &mut on),
            DeviceEvent::Source(source) => self.device.ready(source, events.event_set(), &mut on),
        };
        if let Err(error) = done {
            self.shared.lifecycle.end(Err(error));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (queue, event) in (0..).zip(self.shell.notifications()) {
            listen(ops, Events::with_data(event, queue, EventSet::IN), &self.shared);
        }
        let started = self.device.start(&mut OnLoop::new(&self.shared, ops));
        if let Err(error) = started {
            self.shared.lifecycle.end(Err(error));
        }
    }
}
