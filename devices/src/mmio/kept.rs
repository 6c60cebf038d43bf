//! Chains that a device keeps: taken out of their queue while one call processes it, returned by a later call.
//!
//! What stands between the two may be a reset, or a QueueReady of 0: then the ring is no longer there to be written, and
//! the guest is told nothing. But the host may be reading or writing the chain's buffers until then. So a reset is
//! over, and QueueReady reads as 0, only when the last chain is back (virtio 1.3, sections 2.4.2 and 4.2.2.2); only
//! then may the driver use the memory for something else.

use virtio_wire::mmio;
use vm_memory::GuestMemory;

use super::{Effects, MmioTransport, QueueSet, QueueSlot};
use crate::device::VirtioDevice;
use crate::fault::GuestFault;
use crate::queue::{Head, KeptChain};

/// A chain that the device is done with.
#[derive(Debug)]
pub(crate) struct Completed {
    /// The chain.
    pub(crate) chain: KeptChain,
    /// Number of bytes written into its device-writable buffers, from their start on.
    pub(crate) written: u32,
    /// What turned out to be wrong with it.
    pub(crate) fault: Option<GuestFault>,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Whether the driver has begun a reset that is not over, because the device keeps chains. Registers read as before
    /// and ignore writes until it is. [`super::Lifecycle::Reset`] among the effects of some call tells the end.
    ///
    /// Drivers do not always wait, as they should: Linux' for this transport does not. So the VMM should hold up the
    /// vCPU that wrote the status until this is false.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Returns chains to the guest, as far as it still wants them. A ring that cannot be written is the guest's fault.
    pub(crate) fn complete<M: GuestMemory>(
        &mut self,
        mem: &M,
        completed: impl IntoIterator<Item = Completed>,
    ) -> Effects {
        let mut effects = Effects::NONE;
        let mut returned = QueueSet::NONE;
        for Completed {
            chain,
            written,
            fault,
        } in completed
        {
            let index = chain.queue();
            if let Some(slot) = self.queues.get_mut(usize::from(index)) {
                slot.kept = slot.kept.saturating_sub(1);
            }
            if let Some(fault) = fault {
                self.count(fault);
            }
            match self.return_chain(mem, index, chain.into_head(), written) {
                Ok(true) => returned = returned.and(QueueSet::one(index)),
                Ok(false) => {}
                Err(fault) => effects = effects.then(self.fail(fault)),
            }
        }
        for index in returned.iter() {
            effects = effects.then(self.interrupt_if_wanted(mem, index));
        }
        effects.notified = effects.notified.and(self.device.queues_due());
        effects.then(self.finish_reset())
    }

    /// Whether the guest would still see a kept chain come back: no reset and no stopped queue stands in between.
    pub(crate) fn awaits(&self, chain: &KeptChain) -> bool {
        let slot = self.queues.get(usize::from(chain.queue()));
        self.is_live() && slot.is_some_and(|slot| slot.ready.is_some())
    }

    /// Takes note of a chain that the device keeps.
    pub(super) fn count_kept(&mut self, index: u16, _taken: Head) {
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            slot.kept += 1;
        }
    }

    pub(super) fn keeps_chains(&self) -> bool {
        self.queues.iter().any(|slot| slot.kept > 0)
    }

    /// Whether the queue was there to take the chain.
    fn return_chain<M: GuestMemory>(
        &mut self,
        mem: &M,
        index: u16,
        head: Head,
        written: u32,
    ) -> Result<bool, GuestFault> {
        if !self.is_live() {
            return Ok(false);
        }
        let slot = self.queues.get_mut(usize::from(index));
        match slot.and_then(|slot| slot.ready.as_mut()) {
            Some(queue) => queue.complete(mem, head, written).map(|()| true),
            None => Ok(false),
        }
    }

    fn interrupt_if_wanted<M: GuestMemory>(&mut self, mem: &M, index: u16) -> Effects {
        if !self.is_live() {
            return Effects::NONE;
        }
        let slot = self.queues.get_mut(usize::from(index));
        match slot
            .and_then(|slot| slot.ready.as_mut())
            .map(|queue| queue.needs_interrupt(mem))
        {
            Some(Ok(true)) => Effects {
                interrupt: self.raise(mmio::INTERRUPT_USED_BUFFER),
                ..Effects::NONE
            },
            Some(Err(fault)) => self.fail(fault),
            Some(Ok(false)) | None => Effects::NONE,
        }
    }
}

impl QueueSlot {
    /// Whether the device has nothing to do with the queue: it is not ready, and no chain of it is kept.
    pub(super) fn is_stopped(&self) -> bool {
        self.ready.is_none() && self.kept == 0
    }
}
