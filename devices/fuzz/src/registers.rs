//! What the guest has written to the queue registers, as far as the harness has to know it: where a queue lies once the
//! device calls it ready (virtio 1.3, section 4.2.2).

use virtio_wire::mmio::Register;
use virtio_wire::ring;

use crate::guest::Guest;
use crate::watch::Rings;

/// The registers of one queue.
#[derive(Clone, Copy, Debug)]
struct QueueRegisters {
    size: u32,
    descriptor_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// The registers of all queues, and which one is selected.
#[derive(Debug)]
pub(crate) struct Registers {
    max_sizes: Vec<u16>,
    select: u32,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    /// As after a reset.
    pub(crate) fn new(max_sizes: &[u16]) -> Registers {
        let queue = |&size: &u16| QueueRegisters {
            size: size.into(),
            descriptor_table: 0,
            avail_ring: 0,
            used_ring: 0,
        };
        Registers {
            max_sizes: max_sizes.to_vec(),
            select: 0,
            queues: max_sizes.iter().map(queue).collect(),
        }
    }

    /// The device was reset.
    pub(crate) fn reset(&mut self) {
        *self = Registers::new(&self.max_sizes);
    }

    /// The queue that QueueReady and the others refer to, if there is one.
    pub(crate) fn selected(&self) -> Option<u16> {
        let index = u16::try_from(self.select).ok()?;
        (usize::from(index) < self.queues.len()).then_some(index)
    }

    /// A register was written; `frozen` if the selected queue is ready, whose registers then stay as they are.
    pub(crate) fn write(&mut self, register: Register, value: u32, frozen: bool) {
        if register == Register::QueueSel {
            self.select = value;
        }
        let Some(index) = self.selected().filter(|_| !frozen) else {
            return;
        };
        let queue = &mut self.queues[usize::from(index)];
        let low = |address: &mut u64| *address = *address >> 32 << 32 | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        match register {
            Register::QueueSize => queue.size = value,
            Register::QueueDescLow => low(&mut queue.descriptor_table),
            Register::QueueDescHigh => high(&mut queue.descriptor_table),
            Register::QueueDriverLow => low(&mut queue.avail_ring),
            Register::QueueDriverHigh => high(&mut queue.avail_ring),
            Register::QueueDeviceLow => low(&mut queue.used_ring),
            Register::QueueDeviceHigh => high(&mut queue.used_ring),
            _ => {}
        }
    }

    /// Where a queue lies that the device has just called ready.
    ///
    /// # Errors
    /// What makes it unusable.
    pub(crate) fn rings(&self, guest: &Guest, index: u16) -> Result<Rings, &'static str> {
        let at = usize::from(index);
        let queue = self.queues.get(at).ok_or("there is no such queue")?;
        let size = u16::try_from(queue.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= self.max_sizes[at])
            .ok_or("its size")?;
        let rings = Rings {
            size,
            descriptor_table: queue.descriptor_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
        };
        let aligned = rings
            .descriptor_table
            .is_multiple_of(ring::DESCRIPTOR_TABLE_ALIGN)
            && rings.avail_ring.is_multiple_of(ring::AVAIL_RING_ALIGN)
            && rings.used_ring.is_multiple_of(ring::USED_RING_ALIGN);
        if !aligned {
            return Err("its alignment");
        }
        let reachable = |part: &std::ops::Range<u64>| guest.owns(part.start, part.end - part.start);
        if rings.parts().iter().all(reachable) {
            Ok(rings)
        } else {
            Err("its memory")
        }
    }
}
