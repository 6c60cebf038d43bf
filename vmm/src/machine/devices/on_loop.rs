//! What a device has at hand while the event loop works for it: the machine, and its own host descriptors among those
//! that the loop waits for.

use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events};

use super::super::VmError;
use super::super::shared::Shared;

/// The data of an event: a queue's number, [`DeviceEvent::RESET`], and from here on the number of a device's own source.
const FIRST_SOURCE: u32 = DeviceEvent::RESET + 1;

/// A device's turn on the event loop.
pub(in super::super) struct OnLoop<'a, 'ops> {
    /// The machine.
    pub(in super::super) machine: &'a Shared,
    ops: &'a mut EventOps<'ops>,
}

/// What an event of a device is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum DeviceEvent {
    /// A queue was notified.
    Queue(u16),
    /// The machine is being reset.
    Reset,
    /// A descriptor that the device has added is ready.
    Source(u32),
}

impl DeviceEvent {
    /// The data of [`Self::Reset`], which no queue has.
    pub(in super::super) const RESET: u32 = 1 << 16;
}

impl From<u32> for DeviceEvent {
    fn from(data: u32) -> Self {
        match u16::try_from(data) {
            Ok(queue) => Self::Queue(queue),
            Err(_) if data == Self::RESET => Self::Reset,
            Err(_) => Self::Source(data - FIRST_SOURCE),
        }
    }
}

#[allow(dead_code, reason = "for devices with host descriptors of their own")]
impl<'a, 'ops> OnLoop<'a, 'ops> {
    pub(in super::super) fn new(machine: &'a Shared, ops: &'a mut EventOps<'ops>) -> Self {
        Self { machine, ops }
    }

    /// Waits for `events` on `fd`, as the device's source number `source`, below 2^31. One descriptor is added
    /// once; numbers may repeat. What the loop cannot wait for ends the VM.
    pub(in super::super) fn add_source(&mut self, fd: &impl AsRawFd, source: u32, events: EventSet) {
        let added = self.ops.add(source_events(fd.as_raw_fd(), source, events));
        self.check(added);
    }

    /// Waits for other `events` on a descriptor that was added before; for none, with an empty set, apart from a
    /// hang-up.
    pub(in super::super) fn modify_source(&mut self, fd: &impl AsRawFd, source: u32, events: EventSet) {
        let modified = self.ops.modify(source_events(fd.as_raw_fd(), source, events));
        self.check(modified);
    }

    /// Waits no more for a descriptor that was added before. To be called while it is open.
    pub(in super::super) fn remove_source(&mut self, fd: &impl AsRawFd) {
        let removed = self.ops.remove(Events::empty_raw(fd.as_raw_fd()));
        self.check(removed);
    }

    fn check(&self, done: Result<(), event_manager::Error>) {
        if let Err(error) = done {
            self.machine.lifecycle.end(Err(VmError::EventLoop(error)));
        }
    }
}

fn source_events(fd: RawFd, source: u32, events: EventSet) -> Events {
    Events::with_data_raw(fd, FIRST_SOURCE.saturating_add(source), events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_and_sources_are_told_apart() {
        for queue in [0, 1, u16::MAX] {
            assert_eq!(DeviceEvent::from(u32::from(queue)), DeviceEvent::Queue(queue));
        }
        assert_eq!(DeviceEvent::from(DeviceEvent::RESET), DeviceEvent::Reset);
        for source in [0, 1, (1 << 31) - 1] {
            let data = source_events(0, source, EventSet::IN).data();
            assert_eq!(DeviceEvent::from(data), DeviceEvent::Source(source));
        }
    }
}
