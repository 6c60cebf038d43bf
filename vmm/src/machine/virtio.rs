//! The shell around a virtio device: its lock, its interrupt line, its queues' notifications, and the guest memory
//! that it may touch.
//!
//! [`VirtioShell`] knows the type of its device, for those who use the device; [`Shell`] is the same for those who
//! treat all devices alike: the bus, the event loop, and whoever connects them to KVM.
//!
//! Register accesses come from vCPU threads; queues are processed by the event loop alone, which is also where blocks
//! are unplugged: no block can go while a device touches it (see [`crate::memory`]).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use devices::mmio::{Effects, Lifecycle, MmioTransport};
use devices::{DeviceError, VirtioDevice};
use virtio_wire::mmio::Register;
use vmm_sys_util::eventfd::EventFd;

use super::bus::MmioWindow;
use super::layout::{virtio_gsi, virtio_mmio};
use crate::hv::{HvError, Partition};
use crate::memory::CheckedMemory;

/// A virtio device of any type, as the machine sees it.
pub(super) trait Shell: MmioWindow {
    /// Makes it virtio-mmio device `index` of the machine.
    ///
    /// # Errors
    /// KVM refuses a line.
    fn connect(&self, partition: &Partition, index: u32) -> Result<(), HvError>;

    /// One event for each queue: what the guest writes to QueueNotify, or the machine itself asks for.
    fn notifications(&self) -> &[EventFd];

    /// Processes a queue. For the event loop only. Returns whether the configuration space changed.
    ///
    /// # Errors
    /// The host failed; the machine must end.
    fn process(&self, queue: u16) -> Result<bool, DeviceError>;

    /// The VM ends: no vCPU waits any more for a queue to be processed or for a reset to be over.
    fn release(&self);

    /// Resets the device with its machine: no driver has touched it, and no edge or notification is under way.
    fn reset(&self);

    /// Whether a driver is using the device.
    fn is_live(&self) -> bool;

    /// What the guest did wrong towards it, so far.
    fn guest_faults(&self) -> u64;
}

/// The meeting of a vCPU that has notified a queue with the event loop that processes it. A device has one such queue at
/// most.
///
/// A ticket is drawn before the event loop is woken. A processing that begins later covers it, one under way may not.
#[derive(Debug, Default)]
struct Meeting {
    state: Mutex<MeetingState>,
    processed: Condvar,
}

#[derive(Debug, Default)]
struct MeetingState {
    drawn: u64,
    /// Tickets that a finished processing has covered.
    covered: u64,
    /// Nobody processes any more.
    over: bool,
}

impl Meeting {
    fn draw(&self) -> u64 {
        let mut state = self.lock();
        state.drawn += 1;
        state.drawn
    }

    fn begin(&self) -> u64 {
        self.lock().drawn
    }

    fn finish(&self, begun: u64) {
        let mut state = self.lock();
        state.covered = state.covered.max(begun);
        self.processed.notify_all();
    }

    fn wait_for(&self, ticket: u64) {
        let unprocessed = |state: &mut MeetingState| state.covered < ticket && !state.over;
        drop(self.processed.wait_while(self.lock(), unprocessed));
    }

    fn end(&self) {
        self.lock().over = true;
        self.processed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, MeetingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device with everything that connects it to the machine. Lock order: the transport's lock is a leaf.
#[derive(Debug)]
pub(super) struct VirtioShell<D> {
    transport: Mutex<MmioTransport<D>>,
    /// A reset of the device is over, or [`Self::given_up`].
    reset_over: Condvar,
    given_up: AtomicBool,
    memory: CheckedMemory,
    line: EventFd,
    notifications: Vec<EventFd>,
    meeting: Meeting,
}

impl<D: VirtioDevice> VirtioShell<D> {
    /// Puts a shell around `device`.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(device: D, memory: CheckedMemory) -> io::Result<Self> {
        let notifications: io::Result<_> = device
            .queue_max_sizes()
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK))
            .collect();
        Ok(Self {
            transport: Mutex::new(MmioTransport::new(device)),
            reset_over: Condvar::new(),
            given_up: AtomicBool::new(false),
            memory,
            line: EventFd::new(libc::EFD_NONBLOCK)?,
            notifications: notifications?,
            meeting: Meeting::default(),
        })
    }

    /// Looks at the device.
    pub(super) fn look<R>(&self, look: impl FnOnce(&MmioTransport<D>) -> R) -> R {
        look(&self.lock())
    }

    /// Does something to the device from the host's side, and sees to the effects.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut MmioTransport<D>) -> (R, Effects)) -> R {
        let (result, effects) = change(&mut self.lock());
        self.see_to(effects);
        result
    }

    /// Does something to the device that touches guest memory. For the event loop only.
    ///
    /// # Errors
    /// The host failed; the machine must end.
    pub(super) fn work(
        &self,
        work: impl FnOnce(&mut MmioTransport<D>, &CheckedMemory) -> Result<Effects, DeviceError>,
    ) -> Result<(), DeviceError> {
        let effects = work(&mut self.lock(), &self.memory)?;
        self.see_to(effects);
        Ok(())
    }

    /// Waits until the device is not being reset: until then the host may still be at work on memory that the driver takes
    /// for its own, and drivers of this transport do not ask.
    fn wait_for_reset(&self) {
        let mut transport = self.lock();
        while transport.is_resetting() && !self.given_up.load(Ordering::Acquire) {
            let woken = self.reset_over.wait(transport);
            transport = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn see_to(&self, effects: Effects) {
        if effects.lifecycle == Some(Lifecycle::Reset) {
            self.reset_over.notify_all();
        }
        if effects.interrupt {
            // A counter that is full is an edge that is still under way.
            let _ = self.line.write(1);
        }
        for queue in effects.notified.iter() {
            if let Some(event) = self.notifications.get(usize::from(queue)) {
                let _ = event.write(1);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, MmioTransport<D>> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: VirtioDevice + fmt::Debug + Send> MmioWindow for VirtioShell<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    /// Holds the vCPU up while the device is being reset: until then the host may still be at work on memory that the
    /// driver takes for its own, and drivers of this transport do not ask.
    fn write(&self, offset: u64, data: &[u8]) {
        let (effects, waited) = {
            let mut transport = self.lock();
            let effects = transport.write(&self.memory, offset, data);
            (effects, transport.device().waited_queues())
        };
        let waits = offset == Register::QueueNotify.offset() && !effects.notified.and_also(waited).is_empty();
        let ticket = waits.then(|| self.meeting.draw());
        self.see_to(effects);
        if let Some(ticket) = ticket {
            self.meeting.wait_for(ticket);
        }
        if offset == Register::Status.offset() {
            self.wait_for_reset();
        }
    }
}

impl<D: VirtioDevice + fmt::Debug + Send> Shell for VirtioShell<D> {
    fn connect(&self, partition: &Partition, index: u32) -> Result<(), HvError> {
        partition.connect_interrupt(&self.line, virtio_gsi(index))?;
        let notify = virtio_mmio(index).start + Register::QueueNotify.offset();
        // A notification that is to be waited for must come as an exit; an ioeventfd lets the vCPU run on.
        let waited = self.look(|transport| transport.device().waited_queues());
        for (queue, event) in (0..).zip(&self.notifications) {
            if u16::try_from(queue).is_ok_and(|queue| !waited.contains(queue)) {
                partition.connect_notification(event, notify, queue)?;
            }
        }
        Ok(())
    }

    fn notifications(&self) -> &[EventFd] {
        &self.notifications
    }

    fn process(&self, queue: u16) -> Result<bool, DeviceError> {
        let begun = self.meeting.begin();
        let (effects, waited) = {
            let mut transport = self.lock();
            let waited = transport.device().waited_queues().contains(queue);
            (transport.process_queue(&self.memory, queue)?, waited)
        };
        self.see_to(effects);
        // What is left of a long queue is processed in the next turn.
        if waited && !effects.notified.contains(queue) {
            self.meeting.finish(begun);
        }
        Ok(effects.config_changed)
    }

    fn release(&self) {
        self.meeting.end();
        self.given_up.store(true, Ordering::Release);
        // A waiter holds the lock from its look at the flag until it waits.
        drop(self.lock());
        self.reset_over.notify_all();
    }

    fn reset(&self) {
        self.lock().reset_with_machine();
        // What is left in them was meant for the guest before. Nothing to read is nothing left.
        let _ = self.line.read();
        for event in &self.notifications {
            let _ = event.read();
        }
    }

    fn is_live(&self) -> bool {
        self.look(MmioTransport::is_live)
    }

    fn guest_faults(&self) -> u64 {
        self.look(MmioTransport::guest_faults)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::Meeting;

    #[test]
    fn a_vcpu_waits_for_a_processing_that_began_after_its_notification() {
        let meeting = Arc::new(Meeting::default());
        let earlier = meeting.begin();
        let ticket = meeting.draw();
        let vcpu = {
            let meeting = Arc::clone(&meeting);
            thread::spawn(move || meeting.wait_for(ticket))
        };
        meeting.finish(earlier);
        thread::sleep(Duration::from_millis(20));
        assert!(!vcpu.is_finished(), "that one may have looked too early");
        let later = meeting.begin();
        meeting.finish(later);
        vcpu.join().unwrap();
        meeting.wait_for(ticket);
    }

    #[test]
    fn nobody_waits_when_the_vm_has_ended() {
        let meeting = Meeting::default();
        meeting.end();
        meeting.wait_for(meeting.draw());
    }
}
