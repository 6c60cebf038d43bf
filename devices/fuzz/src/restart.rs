//! Queues that are written to while they are ready, stopped, and started again: they lie where they lay before, for the
//! registers of a ready queue are not to be changed (virtio 1.3, section 4.2.2.2).

use virtio_wire::mmio::Register;

use crate::driver::DriverQueue;
use crate::guest::BUFFERS;
use crate::input::low_half;
use crate::subjects::Subject;
use crate::world::World;

impl<S: Subject> World<S> {
    /// Does so with every queue. What is written would do for a queue: only a device that does not take it
    /// finds the rings afterwards.
    pub(crate) fn restart_queues(&mut self) {
        for (index, known) in (0..).zip(self.driver.queues.clone()) {
            self.write_register(Register::QueueSel, index);
            if self.read_register(Register::QueueReady) == 0 {
                continue;
            }
            for (register, gpa) in [
                (Register::QueueDescLow, BUFFERS),
                (Register::QueueDriverLow, BUFFERS + 0x800),
                (Register::QueueDeviceLow, BUFFERS + 0xa00),
            ] {
                self.write_register(register, low_half(gpa));
            }
            self.write_register(Register::QueueReady, 0);
            let queue = DriverQueue::at(known.rings);
            queue.clear(&self.guest);
            if let Some(slot) = self.driver.queues.get_mut(index as usize) {
                *slot = queue;
            }
            self.write_register(Register::QueueReady, 1);
        }
    }
}
