//! What a virtio device is to its transport: a type, a configuration space, and an answer to each buffer chain.
//!
//! The transport owns the rings and the negotiation; a device sees neither. It is called with one chain at a time and
//! says what became of it, so that no device has a loop that a guest could keep busy.

use vm_memory::GuestMemory;

use crate::fault::{DeviceError, GuestFault};
use crate::mmio::QueueSet;
use crate::queue::Buffers;

/// What became of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device is done with it and has written this many bytes into it.
    Used(u32),
    /// The device cannot serve it now (nothing to send, no room to receive): it stays first in the queue, and the
    /// queue rests until the host processes it again.
    Later,
    /// The device has taken it with [`Buffers::keep`] and returns it when what it stands for is done; the queue goes on
    /// with the next one.
    Kept,
}

/// The result of serving one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Served {
    /// What became of the chain.
    pub outcome: Outcome,
    /// What was wrong with it, if anything.
    pub fault: Option<GuestFault>,
    /// Whether serving it changed the configuration space, in a way that the driver expects and is not notified of.
    pub config_changed: bool,
    /// Whether the configuration space changed in a way that the driver does not expect, and is to be notified of.
    pub driver_notified: bool,
}

impl Served {
    /// The chain was in order.
    pub fn used(written: u32) -> Served {
        Served {
            outcome: Outcome::Used(written),
            fault: None,
            config_changed: false,
            driver_notified: false,
        }
    }

    /// The chain goes back to the guest with nothing in it, and the guest is to blame.
    pub fn refused(fault: GuestFault) -> Served {
        Served {
            outcome: Outcome::Used(0),
            fault: Some(fault),
            config_changed: false,
            driver_notified: false,
        }
    }

    /// The chain has to wait.
    pub fn later() -> Served {
        Served {
            outcome: Outcome::Later,
            fault: None,
            config_changed: false,
            driver_notified: false,
        }
    }

    /// The device has taken the chain with [`Buffers::keep`].
    pub fn kept() -> Served {
        Served {
            outcome: Outcome::Kept,
            fault: None,
            config_changed: false,
            driver_notified: false,
        }
    }
}

/// A virtio device, apart from its transport.
pub trait VirtioDevice {
    /// Device type, one of [`virtio_wire::device_id`].
    fn device_id(&self) -> u32;

    /// Largest size of each queue; each a power of two up to 32768; at most 64 queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Feature bits of this device type. The transport adds those that belong to every device.
    fn features(&self) -> u64;

    /// Those of [`Self::features`] without which the device does not work: FEATURES_OK is refused unless all are accepted.
    fn required_features(&self) -> u64;

    /// Fills `data` from `offset` of the configuration space, with zeros beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver wrote `data` at `offset` of the configuration space. Comes at any time, even before negotiation.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Serves one chain of a queue.
    ///
    /// # Errors
    /// Only faults of the host. What is wrong with the chain goes into [`Served::fault`].
    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError>;

    /// Queues whose notification must not be over, for the guest, before they have been processed. May hold more of them
    /// before DRIVER_OK than after, but not fewer. A VMM that lets the guest run on anyway breaks the device's promises.
    fn waited_queues(&self) -> QueueSet {
        QueueSet::NONE
    }

    /// The driver is ready, and these are the queues it has set up. Comes right before [`Self::activate`]; for devices that
    /// have to find out how a driver numbers its queues.
    fn queues_in_use(&mut self, _queues: QueueSet) {}

    /// The driver is ready and has accepted these features, bits of the transport included. Comes once after each
    /// reset, before the first chain.
    fn activate(&mut self, _features: u64) {}

    /// The chains that were there have been served, as far as a call goes, if there were any: what a device has gathered
    /// begins now.
    ///
    /// # Errors
    /// Only faults of the host.
    fn round_ended<M: GuestMemory>(&mut self, _mem: &M) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Queues that have become due by what was served since the last call: a chain of one queue may bring forth an
    /// answer for another, or make room for what another has been resting on ([`Outcome::Later`]).
    fn queues_due(&mut self) -> QueueSet {
        QueueSet::NONE
    }

    /// The driver has reset the device: what belongs to the conversation with the driver is forgotten. Comes when no
    /// chain is kept any more: a device that keeps chains must be done with each in bounded time, by itself.
    fn reset(&mut self);

    /// The machine was reset: what outlives a driver but not a guest is forgotten too. [`Self::reset`] was called before.
    fn reset_with_machine(&mut self) {}
}

/// Copies from a configuration space for [`VirtioDevice::read_config`]: `data` is filled from `offset`, zeros beyond the end.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
    data[len..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::read_config_bytes;

    #[test]
    fn a_read_across_the_end_is_filled_up_with_zeros() {
        let mut data = [0xee; 4];
        read_config_bytes(&[1, 2, 3], 1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
    }

    #[test]
    fn a_read_far_beyond_the_end_is_all_zeros() {
        for offset in [3, 4, u64::MAX] {
            let mut data = [0xee; 4];
            read_config_bytes(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
    }
}
