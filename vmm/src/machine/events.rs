//! The event loop: the one thread that processes virtio queues, waits for the devices' host descriptors, takes the
//! user's input, and hears the signals that end a VM.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use super::devices::{DeviceEvent, MachineDevice, OnLoop};
use super::input::{InputLine, TerminalInput};
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
    resets: Vec<EventFd>,
    reset: Receiver<Result<(), VmError>>,
}

/// The loop while it runs.
#[derive(Debug)]
pub(super) struct RunningLoop {
    thread: JoinHandle<()>,
    /// One for each device, in their order: asks for its reset.
    resets: Vec<EventFd>,
    /// Says that a device was reset.
    reset: Receiver<Result<(), VmError>>,
}

impl EventLoop {
    /// A loop that ends when the VM does.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(shared: &Arc<Shared>) -> Result<Self, VmError> {
        let mut manager = EventManager::new().map_err(VmError::EventLoop)?;
        manager.add_subscriber(Box::new(EndWatch(Arc::clone(shared))) as Subscriber);
        manager.add_subscriber(Box::new(QuietWatch(Arc::clone(shared))));
        let (done, reset) = channel();
        let mut resets = Vec::new();
        for device in shared.devices.iter() {
            let descriptors = || VmError::host("create event descriptors");
            let order = EventFd::new(libc::EFD_NONBLOCK).map_err(descriptors())?;
            resets.push(order.try_clone().map_err(descriptors())?);
            manager.add_subscriber(Box::new(DeviceWatch {
                device: Arc::clone(device),
                shell: device.shell(),
                shared: Arc::clone(shared),
                order,
                done: done.clone(),
            }));
        }
        Ok(Self {
            manager,
            shared: Arc::clone(shared),
            resets,
            reset,
        })
    }

    /// Also hears signals.
    pub(super) fn hear(&mut self, signals: EndSignals) {
        self.manager.add_subscriber(Box::new(SignalWatch {
            signals,
            shared: Arc::clone(&self.shared),
        }));
    }

    /// Also takes standard input for the guest.
    pub(super) fn take_input(&mut self, line: Arc<dyn InputLine>, screen: OutputWriter) {
        let input = TerminalInput::new(line, Arc::clone(&self.shared), screen);
        self.manager.add_subscriber(Box::new(input));
    }

    /// Runs it on a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(self) -> Result<RunningLoop, VmError> {
        let Self {
            manager,
            shared,
            resets,
            reset,
        } = self;
        let thread = thread::Builder::new().name("events".into()).stack_size(STACK);
        let thread = thread
            .spawn(move || run(manager, &shared))
            .map_err(VmError::host("start the event loop"))?;
        Ok(RunningLoop {
            thread,
            resets,
            reset,
        })
    }
}

fn run(mut manager: EventManager<Subscriber>, shared: &Shared) {
    while !shared.lifecycle.is_ending() {
        if let Err(error) = manager.run() {
            shared.lifecycle.end(Err(VmError::EventLoop(error)));
        }
    }
    for device in shared.devices.iter() {
        if let Err(error) = device.drain(shared) {
            tracing::warn!("a device's last words are lost: {error}");
        }
    }
}

impl RunningLoop {
    /// Resets all devices, each on the loop, and returns when that is done or the VM ends. The last ones come first: the
    /// memory devices unplug when nothing else uses their blocks any more.
    ///
    /// # Errors
    /// The host failed.
    pub(super) fn reset_devices(&self) -> Result<(), VmError> {
        for order in self.resets.iter().rev() {
            order.write(1).map_err(VmError::host("reach the event loop"))?;
            match self.reset.recv() {
                Ok(result) => result?,
                // The loop has ended, as the VM does.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits for its end, which is that of the VM.
    pub(super) fn join(self) {
        // The event loop does not panic; if it did, it has said so.
        let _ = self.thread.join();
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

/// Notices that a resize has stalled.
struct QuietWatch(Arc<Shared>);

impl MutEventSubscriber for QuietWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.0.resize_is_quiet();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let timer = Events::new_raw(self.0.progress.timer(), EventSet::IN);
        listen(ops, timer, &self.0);
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
    /// Signalled to have the device reset.
    order: EventFd,
    done: Sender<Result<(), VmError>>,
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
            DeviceEvent::Reset => {
                // Only its being signalled counts. Whoever gave the order may be gone with the VM.
                let _ = self.order.read();
                let _ = self.done.send(self.device.reset(&mut on));
                Ok(())
            }
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
        let order = Events::with_data(&self.order, DeviceEvent::RESET, EventSet::IN);
        listen(ops, order, &self.shared);
        let started = self.device.start(&mut OnLoop::new(&self.shared, ops));
        if let Err(error) = started {
            self.shared.lifecycle.end(Err(error));
        }
    }
}
