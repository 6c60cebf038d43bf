//! The registers of one queue, raw as the driver wrote them, and the check that turns them into a queue.

use virtio_queue::{Queue, QueueT};
use virtio_wire::ring;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::VirtQueue;
use crate::fault::{GuestFault, RingPart};

/// What the driver wrote about a queue. Nothing here is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueRegisters {
    /// Largest size, the device's.
    pub(crate) max_size: u16,
    /// Number of entries; starts at the maximum.
    pub(crate) size: u32,
    /// Guest-physical address of the descriptor table.
    pub(crate) descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub(crate) avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub(crate) used_ring: u64,
}

impl QueueRegisters {
    pub(crate) fn new(max_size: u16) -> QueueRegisters {
        QueueRegisters {
            max_size,
            size: max_size.into(),
            descriptor_table: 0,
            avail_ring: 0,
            used_ring: 0,
        }
    }

    /// Checks everything and makes the queue usable.
    ///
    /// # Errors
    /// What is wrong with size, alignment or memory.
    pub(crate) fn enable<M: GuestMemory>(
        &self,
        index: u16,
        mem: &M,
        event_idx: bool,
    ) -> Result<VirtQueue, GuestFault> {
        let size = self.checked_size(index)?;
        let mut queue = Queue::new(self.max_size).expect("queue_max_sizes are powers of two up to 32768");
        queue.set_size(size);

        let part = RingPart::DescriptorTable;
        check_memory(
            index,
            mem,
            part,
            self.descriptor_table,
            ring::descriptor_table_size(size),
        )?;
        let misaligned = |part, gpa| {
            move |_| GuestFault::QueueMisaligned {
                queue: index,
                part,
                gpa,
            }
        };
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptor_table))
            .map_err(misaligned(part, self.descriptor_table))?;

        let part = RingPart::AvailRing;
        check_memory(index, mem, part, self.avail_ring, ring::avail_ring_size(size))?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail_ring))
            .map_err(misaligned(part, self.avail_ring))?;

        let part = RingPart::UsedRing;
        check_memory(index, mem, part, self.used_ring, ring::used_ring_size(size))?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring))
            .map_err(misaligned(part, self.used_ring))?;

        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(VirtQueue { index, queue })
    }

    fn checked_size(&self, queue: u16) -> Result<u16, GuestFault> {
        match u16::try_from(self.size) {
            Ok(size) if size.is_power_of_two() && size <= self.max_size => Ok(size),
            _ => Err(GuestFault::QueueSize {
                queue,
                size: self.size,
                max: self.max_size,
            }),
        }
    }
}

fn check_memory<M: GuestMemory>(
    queue: u16,
    mem: &M,
    part: RingPart,
    gpa: u64,
    size: u64,
) -> Result<(), GuestFault> {
    let access = match part {
        RingPart::DescriptorTable | RingPart::AvailRing => Permissions::Read,
        RingPart::UsedRing => Permissions::Write,
    };
    // Address 0 is what the registers hold when the driver has set none; `virtio_queue` takes it for "no ring" too.
    let inside = gpa != 0 && gpa.checked_add(size).is_some();
    let reachable =
        inside && usize::try_from(size).is_ok_and(|size| mem.check_range(GuestAddress(gpa), size, access));
    if reachable {
        Ok(())
    } else {
        Err(GuestFault::QueueUnreachable { queue, part, gpa })
    }
}
