//! The guest's view of a transport: reads and writes of its register window.
//!
//! Control registers are accessed with 32 bits, aligned, and nothing else: any other access reads as zeros and writes
//! nothing (virtio 1.3, section 4.2.2.2 forbids it to the driver). The configuration space takes every width.

use virtio_wire::mmio::{CONFIG_OFFSET, INTERRUPT_CONFIG_CHANGE, MAGIC, Register, VERSION};
use vm_memory::GuestMemory;

use super::status::StatusWrite;
use super::{Effects, Lifecycle, MmioTransport, QueueSlot};
use crate::device::VirtioDevice;
use crate::fault::GuestFault;

/// Value of the VendorID register, which has no meaning to the protocol.
const VENDOR_ID: u32 = u32::from_le_bytes(*b"BLST");

impl<D: VirtioDevice> MmioTransport<D> {
    /// The guest reads `data.len()` bytes at `offset` of the window. Fills all of `data`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            return self.device.read_config(offset, data);
        }
        match (
            Register::from_offset(offset),
            <&mut [u8; 4]>::try_from(&mut *data),
        ) {
            (Some(register), Ok(word)) => *word = self.read_register(register).to_le_bytes(),
            _ => data.fill(0),
        }
    }

    /// The guest writes `data` at `offset` of the window.
    pub fn write<M: GuestMemory>(&mut self, mem: &M, offset: u64, data: &[u8]) -> Effects {
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            self.device.write_config(offset, data);
            return Effects::NONE;
        }
        match (Register::from_offset(offset), <[u8; 4]>::try_from(data)) {
            (Some(register), Ok(word)) => self.write_register(mem, register, u32::from_le_bytes(word)),
            _ => Effects::NONE,
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_id(),
            Register::VendorId => VENDOR_ID,
            Register::DeviceFeatures => self.negotiation.offered_word(),
            Register::QueueSizeMax => self
                .selected_queue()
                .map_or(0, |slot| slot.registers.max_size.into()),
            Register::QueueReady => self
                .selected_queue()
                .is_some_and(|slot| !slot.is_stopped())
                .into(),
            Register::InterruptStatus => self.interrupt_status,
            Register::Status => self.status.bits(),
            Register::ConfigGeneration => self.config_generation,
            // A shared memory region that does not exist has length and base -1.
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => {
                u32::MAX
            }
            // VIRTIO_F_RING_RESET is not offered.
            Register::QueueReset => 0,
            // Write-only.
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueSize
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel => 0,
        }
    }

    fn write_register<M: GuestMemory>(&mut self, mem: &M, register: Register, value: u32) -> Effects {
        // The driver has to wait for the reset that it began (section 2.4.2).
        if self.resetting {
            return Effects::NONE;
        }
        match register {
            Register::DeviceFeaturesSel => self.negotiation.select_device_word(value),
            Register::DriverFeaturesSel => self.negotiation.select_driver_word(value),
            // The only way to negotiate again is to reset the device (section 2.2).
            Register::DriverFeatures if !self.status.is_negotiated() => self.negotiation.accept_word(value),
            Register::QueueSel => self.queue_select = value,
            Register::QueueReady => return self.write_queue_ready(mem, value),
            Register::QueueNotify => {
                let notified = self
                    .all_queues()
                    .iter()
                    .filter(|&index| u32::from(index) == value)
                    .collect();
                return Effects {
                    notified,
                    ..Effects::NONE
                };
            }
            Register::InterruptAck => self.interrupt_status &= !value,
            Register::Status => return self.write_status(value),
            Register::QueueSize
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => self.write_queue_setup(register, value),
            // Read-only, not offered, or too late.
            Register::DriverFeatures
            | Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueSizeMax
            | Register::InterruptStatus
            | Register::ShmSel
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::QueueReset
            | Register::ConfigGeneration => {}
        }
        Effects::NONE
    }

    fn write_status(&mut self, written: u32) -> Effects {
        match self.status.write(written, self.negotiation.fits()) {
            StatusWrite::Reset => self.reset(),
            StatusWrite::Moved(status) => {
                self.status = status;
                Effects::NONE
            }
            StatusWrite::Activated(status) => {
                self.status = status;
                self.had_driver = true;
                let ready = (0..).zip(&self.queues).filter(|(_, slot)| slot.ready.is_some());
                let ready = ready.map(|(index, _)| index).collect();
                self.device.queues_in_use(ready);
                self.device.activate(self.negotiation.accepted());
                // What changed before the driver could be told is told now, lest it be missed.
                let pending = std::mem::take(&mut self.config_change_pending);
                let told = pending || status.needs_reset();
                let interrupt = told && self.raise(INTERRUPT_CONFIG_CHANGE);
                Effects {
                    interrupt,
                    notified: self.all_queues(),
                    lifecycle: Some(Lifecycle::Activated),
                    ..Effects::NONE
                }
            }
            StatusWrite::Refused => {
                self.count(GuestFault::StatusSequence {
                    status: self.status.bits(),
                    written,
                });
                Effects::NONE
            }
        }
    }

    fn write_queue_ready<M: GuestMemory>(&mut self, mem: &M, value: u32) -> Effects {
        let event_idx = self.has_event_idx();
        let negotiated = self.status.is_negotiated();
        let Ok(index) = u16::try_from(self.queue_select) else {
            return Effects::NONE;
        };
        let Some(slot) = self.queues.get_mut(usize::from(index)) else {
            return Effects::NONE;
        };
        match value {
            0 => slot.ready = None,
            1 if slot.is_stopped() => {
                let enabled = if negotiated {
                    slot.registers.enable(index, mem, event_idx)
                } else {
                    Err(GuestFault::QueueTooEarly { queue: index })
                };
                match enabled {
                    Ok(queue) => slot.ready = Some(queue),
                    Err(fault) => return self.fail(fault),
                }
            }
            _ => {}
        }
        Effects::NONE
    }

    /// Writes size or address of the selected queue; ignored while the queue is ready (section 4.2.2.2).
    fn write_queue_setup(&mut self, register: Register, value: u32) {
        let Some(slot) = self.selected_queue_mut().filter(|slot| slot.is_stopped()) else {
            return;
        };
        let registers = &mut slot.registers;
        match register {
            Register::QueueSize => registers.size = value,
            Register::QueueDescLow => set_low(&mut registers.descriptor_table, value),
            Register::QueueDescHigh => set_high(&mut registers.descriptor_table, value),
            Register::QueueDriverLow => set_low(&mut registers.avail_ring, value),
            Register::QueueDriverHigh => set_high(&mut registers.avail_ring, value),
            Register::QueueDeviceLow => set_low(&mut registers.used_ring, value),
            Register::QueueDeviceHigh => set_high(&mut registers.used_ring, value),
            _ => {}
        }
    }

    fn selected_queue(&self) -> Option<&QueueSlot> {
        usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.queues.get(index))
    }

    fn selected_queue_mut(&mut self) -> Option<&mut QueueSlot> {
        usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
