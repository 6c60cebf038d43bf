//! The event loop: the one thread that processes virtio queues, takes the user's input, and hears the signals that
//! end a VM.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use devices::VirtioDevice;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::input::SerialInput;
use super::serial::SerialPort;
use super::shared::Shared;
use super::virtio::VirtioShell;
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
        if let Some(memory) = &shared.memory_device {
            let after = AfterQueue::Memory;
            manager.add_subscriber(queues(shared, memory, after));
        }
        manager.add_subscriber(queues(shared, &shared.console, AfterQueue::Console));
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

/// What follows the processing of a device's queue.
#[derive(Debug, Clone, Copy)]
enum AfterQueue {
    /// Blocks may have moved.
    Memory,
    /// The guest may have sent something.
    Console,
}

/// Processes the queues of one device.
struct QueueWatch<D> {
    device: Arc<VirtioShell<D>>,
    shared: Arc<Shared>,
    after: AfterQueue,
}

fn queues<D: VirtioDevice + Send + 'static>(
    shared: &Arc<Shared>,
    device: &Arc<VirtioShell<D>>,
    after: AfterQueue,
) -> Subscriber {
    Box::new(QueueWatch {
        device: Arc::clone(device),
        shared: Arc::clone(shared),
        after,
    })
}

impl<D: VirtioDevice + Send> MutEventSubscriber for QueueWatch<D> {
    fn process(&mut self, events: Events, _: &mut EventOps) {
        let Ok(queue) = u16::try_from(events.data()) else {
            return;
        };
        let Some(event) = self.device.notifications().get(usize::from(queue)) else {
            return;
        };
        // Nothing to read is a notification that was already served.
        let _ = event.read();
        match (self.device.process(queue), self.after) {
            (Err(error), _) => self.shared.lifecycle.end(Err(error.into())),
            (Ok(true), AfterQueue::Memory) => self.shared.progress.moved(),
            (Ok(_), AfterQueue::Memory) => {}
            (Ok(_), AfterQueue::Console) => self.shared.take_replies(),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (queue, event) in (0..).zip(self.device.notifications()) {
            listen(ops, Events::with_data(event, queue, EventSet::IN), &self.shared);
        }
    }
}
