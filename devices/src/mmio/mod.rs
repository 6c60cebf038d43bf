//! The virtio-mmio transport, version 2 (virtio 1.3, section 4.2), as a state machine.
//!
//! A VMM forwards the guest's accesses to the device's 4 KiB window with [`MmioTransport::read`] and
//! [`MmioTransport::write`], calls [`MmioTransport::process_queue`] when a queue was notified (by an [`Effects::notified`] or by an
//! ioeventfd on the QueueNotify register), and does what the returned [`Effects`] say. It needs one lock around the
//! transport, nothing else.
//!
//! Whatever the guest writes, in whatever order and width: no call panics, allocates without bound or runs without end.

mod effects;
mod kept;
mod negotiation;
mod registers;
mod status;
#[cfg(test)]
mod tests;

use virtio_wire::{feature, mmio};
use vm_memory::GuestMemory;

pub use effects::{Effects, Lifecycle, QueueSet};
pub(crate) use kept::Completed;

use crate::device::{Outcome, VirtioDevice};
use crate::fault::{DeviceError, GuestFault};
use crate::queue::{Popped, QueueRegisters, VirtQueue};
use negotiation::Negotiation;
use status::DeviceStatus;

/// A device behind its registers.
#[derive(Debug)]
pub struct MmioTransport<D> {
    device: D,
    status: DeviceStatus,
    negotiation: Negotiation,
    queues: Vec<QueueSlot>,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
    /// The configuration changed while no driver was there to be notified; cleared when one is.
    config_change_pending: bool,
    /// The driver has reset the device, which still has chains of before to be done with.
    resetting: bool,
    /// A driver has been ready since the machine was started, or reset.
    had_driver: bool,
    guest_faults: u64,
    last_guest_fault: Option<GuestFault>,
}

/// A queue: what the driver wrote about it, and the queue itself while QueueReady is 1.
#[derive(Debug)]
struct QueueSlot {
    registers: QueueRegisters,
    ready: Option<VirtQueue>,
    /// Chains of it that the device keeps.
    kept: u32,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A device that no driver has touched.
    ///
    /// # Panics
    /// If the device has more than 64 queues: that is an error in the device.
    pub fn new(device: D) -> MmioTransport<D> {
        let queues: Vec<QueueSlot> = device
            .queue_max_sizes()
            .iter()
            .map(|&size| QueueSlot::new(size))
            .collect();
        assert!(
            queues.len() <= usize::from(QueueSet::MAX_QUEUES),
            "a device has {} queues",
            queues.len()
        );
        let negotiation = Negotiation::new(device.features(), device.required_features());
        MmioTransport {
            device,
            status: DeviceStatus::RESET,
            negotiation,
            queues,
            queue_select: 0,
            interrupt_status: 0,
            config_generation: 0,
            config_change_pending: false,
            resetting: false,
            had_driver: false,
            guest_faults: 0,
            last_guest_fault: None,
        }
    }

    /// The device behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Whether a driver is using the device: it has set DRIVER_OK, and neither side has given up since.
    pub fn is_live(&self) -> bool {
        self.status.is_live() && !self.resetting
    }

    /// Whether the driver that has used the device has reset it, and is setting it up again as far as is known: it may do that at any time, for
    /// queues in other memory, and is there again in a moment.
    pub fn is_restarting(&self) -> bool {
        self.had_driver && (self.resetting || !self.status.is_driver_ok()) && !self.status.has_failed()
    }

    /// The features that driver and device have agreed on; 0 before.
    pub fn negotiated_features(&self) -> u64 {
        if self.status.is_negotiated() {
            self.negotiation.accepted()
        } else {
            0
        }
    }

    /// Number of things the guest did that the specification does not allow, since the device exists.
    pub fn guest_faults(&self) -> u64 {
        self.guest_faults
    }

    /// The last of those things.
    pub fn last_guest_fault(&self) -> Option<GuestFault> {
        self.last_guest_fault
    }

    /// Resets the device together with its machine: the driver is gone without a word, and the device is as at power-on,
    /// apart from what the host has set.
    pub fn reset_with_machine(&mut self) {
        let _ = self.reset();
        self.had_driver = false;
        self.device.reset_with_machine();
    }

    /// Serves the chains of a queue, at most as many as it has entries: the rest is for the next call, which
    /// [`Effects::notified`] then asks for. Does nothing for a queue that is not ready or not there.
    ///
    /// # Errors
    /// The host could not do what a device needed. The machine should end.
    pub fn process_queue<M: GuestMemory>(&mut self, mem: &M, index: u16) -> Result<Effects, DeviceError> {
        if !self.is_live() {
            return Ok(Effects::NONE);
        }
        let Some(mut queue) = self
            .queues
            .get_mut(usize::from(index))
            .and_then(|slot| slot.ready.take())
        else {
            return Ok(Effects::NONE);
        };
        let mut round = Round::default();
        let served = self.serve_chains(mem, index, &mut queue, &mut round);
        self.queues[usize::from(index)].ready = Some(queue);

        let ring_fault = served?.err();
        self.device.round_ended(mem)?;
        // A queue whose ring broke rests: there is nothing to come back for.
        let unfinished = if round.unfinished && ring_fault.is_none() {
            QueueSet::one(index)
        } else {
            QueueSet::NONE
        };
        let mut effects = Effects {
            notified: unfinished.and(self.device.queues_due()),
            ..Effects::NONE
        };
        if round.config_changed || round.driver_notified {
            // If the driver caused the change and knows of it: a new generation, but no interrupt.
            self.config_generation = self.config_generation.wrapping_add(1);
            effects.config_changed = true;
        }
        if round.driver_notified {
            effects.interrupt |= self.raise(mmio::INTERRUPT_CONFIG_CHANGE);
        }
        if round.interrupt {
            effects.interrupt |= self.raise(mmio::INTERRUPT_USED_BUFFER);
        }
        Ok(match ring_fault {
            Some(fault) => effects.then(self.fail(fault)),
            None => effects,
        })
    }

    /// Every queue of the device.
    fn all_queues(&self) -> QueueSet {
        (0..QueueSet::MAX_QUEUES).take(self.queues.len()).collect()
    }

    /// Changes the device from the host's side. `change` tells whether the configuration space changed; if so, the
    /// generation goes up and the driver is notified, now or when it is ready.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut D) -> bool) -> Effects {
        if !change(&mut self.device) {
            return Effects::NONE;
        }
        self.config_generation = self.config_generation.wrapping_add(1);
        let mut effects = Effects {
            config_changed: true,
            ..Effects::NONE
        };
        if self.status.is_driver_ok() {
            effects.interrupt = self.raise(mmio::INTERRUPT_CONFIG_CHANGE);
        } else {
            self.config_change_pending = true;
        }
        effects
    }

    /// The device, for changes that do not touch its configuration space.
    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The loop over the chains. The outer error is the host's, the inner one is that of a ring that broke.
    fn serve_chains<M: GuestMemory>(
        &mut self,
        mem: &M,
        index: u16,
        queue: &mut VirtQueue,
        round: &mut Round,
    ) -> Result<Result<(), GuestFault>, DeviceError> {
        let mut used_any = false;
        round.unfinished = true;
        for _ in 0..queue.size() {
            let (head, written) = match queue.pop(mem) {
                Err(fault) => return Ok(Err(fault)),
                Ok(None) => match queue.rearm(mem) {
                    Err(fault) => return Ok(Err(fault)),
                    Ok(true) => continue,
                    Ok(false) => {
                        round.unfinished = false;
                        break;
                    }
                },
                Ok(Some(Popped::Lost(fault))) => {
                    self.count(fault);
                    continue;
                }
                Ok(Some(Popped::Broken(head, fault))) => {
                    self.count(fault);
                    (head, 0)
                }
                Ok(Some(Popped::Chain(head, buffers))) => {
                    let served = self.device.serve(index, &buffers)?;
                    round.config_changed |= served.config_changed;
                    round.driver_notified |= served.driver_notified;
                    if let Some(fault) = served.fault {
                        self.count(fault);
                    }
                    match served.outcome {
                        Outcome::Used(written) => (head, written),
                        Outcome::Later => {
                            queue.put_back(head);
                            round.unfinished = false;
                            break;
                        }
                        Outcome::Kept => {
                            self.count_kept(index, head);
                            continue;
                        }
                    }
                }
            };
            if let Err(fault) = queue.complete(mem, head, written) {
                return Ok(Err(fault));
            }
            used_any = true;
        }
        Ok(if used_any {
            queue.needs_interrupt(mem).map(|wanted| round.interrupt = wanted)
        } else {
            Ok(())
        })
    }

    /// Sets a bit of the interrupt status. The interrupt is raised even when the bit was set before: the driver may
    /// have read it already and be about to acknowledge it.
    fn raise(&mut self, bit: u32) -> bool {
        self.interrupt_status |= bit;
        true
    }

    fn count(&mut self, fault: GuestFault) {
        self.guest_faults = self.guest_faults.saturating_add(1);
        self.last_guest_fault = Some(fault);
    }

    /// Counts a fault that the device cannot work on with, and asks for a reset (section 2.1.2).
    fn fail(&mut self, fault: GuestFault) -> Effects {
        self.count(fault);
        self.status = self.status.with_needs_reset();
        let interrupt = self.status.is_driver_ok() && self.raise(mmio::INTERRUPT_CONFIG_CHANGE);
        Effects {
            interrupt,
            lifecycle: Some(Lifecycle::NeedsReset),
            ..Effects::NONE
        }
    }

    /// Back to where no driver has touched the device; the device itself keeps what outlives its driver. The queues stop
    /// now; the rest comes with the last chain that the device keeps.
    pub(crate) fn reset(&mut self) -> Effects {
        for slot in &mut self.queues {
            slot.ready = None;
        }
        self.resetting = true;
        self.finish_reset()
    }

    /// Finishes a reset that has begun, unless a chain is still kept.
    fn finish_reset(&mut self) -> Effects {
        if !self.resetting || self.keeps_chains() {
            return Effects::NONE;
        }
        self.device.reset();
        self.status = DeviceStatus::RESET;
        self.negotiation.reset();
        for slot in &mut self.queues {
            *slot = QueueSlot::new(slot.registers.max_size);
        }
        self.queue_select = 0;
        self.interrupt_status = 0;
        self.config_change_pending = false;
        self.resetting = false;
        Effects {
            lifecycle: Some(Lifecycle::Reset),
            ..Effects::NONE
        }
    }

    fn has_event_idx(&self) -> bool {
        self.negotiation.accepted() & feature::RING_EVENT_IDX != 0
    }
}

impl QueueSlot {
    fn new(max_size: u16) -> QueueSlot {
        QueueSlot {
            registers: QueueRegisters::new(max_size),
            ready: None,
            kept: 0,
        }
    }
}

/// What happened while chains were served.
#[derive(Debug, Default)]
struct Round {
    interrupt: bool,
    config_changed: bool,
    driver_notified: bool,
    unfinished: bool,
}
