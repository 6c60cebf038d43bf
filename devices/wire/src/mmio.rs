//! The registers of a virtio device behind memory-mapped I/O, version 2 (virtio 1.3, section 4.2.2).
//!
//! Control registers are 32 bits wide and are accessed whole. From [`CONFIG_OFFSET`] on lies the device's own
//! configuration space, accessed with the width of its fields.

/// Value of [`Register::MagicValue`]: "virt" in little-endian ASCII.
pub const MAGIC: u32 = 0x7472_6976;

/// Value of [`Register::Version`]. Version 1 is the legacy layout, which is not described here.
pub const VERSION: u32 = 2;

/// Where the device-specific configuration space starts.
pub const CONFIG_OFFSET: u64 = 0x100;

/// Bit of [`Register::InterruptStatus`]: the device has used a buffer of at least one queue.
pub const INTERRUPT_USED_BUFFER: u32 = 1 << 0;

/// Bit of [`Register::InterruptStatus`]: the configuration or the device status has changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 1 << 1;

/// A control register. The discriminant is the byte offset from the start of the device's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Register {
    /// Read: [`MAGIC`].
    MagicValue = 0x000,
    /// Read: [`VERSION`].
    Version = 0x004,
    /// Read: one of [`crate::device_id`]; 0 means that no device is here.
    DeviceId = 0x008,
    /// Read: vendor, without meaning to the protocol.
    VendorId = 0x00c,
    /// Read: 32 offered feature bits, chosen by `DeviceFeaturesSel`.
    DeviceFeatures = 0x010,
    /// Write: 0 selects feature bits 0 to 31, 1 selects 32 to 63.
    DeviceFeaturesSel = 0x014,
    /// Write: 32 accepted feature bits, chosen by `DriverFeaturesSel`.
    DriverFeatures = 0x020,
    /// Write: as `DeviceFeaturesSel`, for `DriverFeatures`.
    DriverFeaturesSel = 0x024,
    /// Write: index of the queue that the other `Queue…` registers refer to.
    QueueSel = 0x030,
    /// Read: the largest size of the selected queue, 0 if there is no such queue.
    QueueSizeMax = 0x034,
    /// Write: number of entries of the selected queue, a power of two of at most `QueueSizeMax`.
    QueueSize = 0x038,
    /// Read, write: 1 when the device may use the selected queue.
    QueueReady = 0x044,
    /// Write: index of a queue that has new buffers.
    QueueNotify = 0x050,
    /// Read: why the interrupt was raised ([`INTERRUPT_USED_BUFFER`], [`INTERRUPT_CONFIG_CHANGE`]).
    InterruptStatus = 0x060,
    /// Write: the bits of `InterruptStatus` that were handled.
    InterruptAck = 0x064,
    /// Read, write: bits of [`crate::status`]; writing 0 resets the device.
    Status = 0x070,
    /// Write: guest-physical address of the descriptor table, bits 0 to 31.
    QueueDescLow = 0x080,
    /// Write: bits 32 to 63 of the same.
    QueueDescHigh = 0x084,
    /// Write: guest-physical address of the available ring, bits 0 to 31.
    QueueDriverLow = 0x090,
    /// Write: bits 32 to 63 of the same.
    QueueDriverHigh = 0x094,
    /// Write: guest-physical address of the used ring, bits 0 to 31.
    QueueDeviceLow = 0x0a0,
    /// Write: bits 32 to 63 of the same.
    QueueDeviceHigh = 0x0a4,
    /// Write: id of the shared memory region that the `Shm…` registers refer to.
    ShmSel = 0x0ac,
    /// Read: length of the shared memory region, bits 0 to 31; all ones if there is none.
    ShmLenLow = 0x0b0,
    /// Read: bits 32 to 63 of the same.
    ShmLenHigh = 0x0b4,
    /// Read: guest-physical address of the shared memory region, bits 0 to 31; all ones if there is none.
    ShmBaseLow = 0x0b8,
    /// Read: bits 32 to 63 of the same.
    ShmBaseHigh = 0x0bc,
    /// Read, write: resets the selected queue, only with `VIRTIO_F_RING_RESET`.
    QueueReset = 0x0c0,
    /// Read: changes whenever the configuration space does.
    ConfigGeneration = 0x0fc,
}

impl Register {
    /// Every register, in the order of the offsets.
    pub const ALL: [Register; 29] = [
        Register::MagicValue,
        Register::Version,
        Register::DeviceId,
        Register::VendorId,
        Register::DeviceFeatures,
        Register::DeviceFeaturesSel,
        Register::DriverFeatures,
        Register::DriverFeaturesSel,
        Register::QueueSel,
        Register::QueueSizeMax,
        Register::QueueSize,
        Register::QueueReady,
        Register::QueueNotify,
        Register::InterruptStatus,
        Register::InterruptAck,
        Register::Status,
        Register::QueueDescLow,
        Register::QueueDescHigh,
        Register::QueueDriverLow,
        Register::QueueDriverHigh,
        Register::QueueDeviceLow,
        Register::QueueDeviceHigh,
        Register::ShmSel,
        Register::ShmLenLow,
        Register::ShmLenHigh,
        Register::ShmBaseLow,
        Register::ShmBaseHigh,
        Register::QueueReset,
        Register::ConfigGeneration,
    ];

    /// Byte offset from the start of the device's window.
    pub const fn offset(self) -> u64 {
        self as u64
    }

    /// The register at a byte offset; `None` between registers and in the configuration space.
    pub fn from_offset(offset: u64) -> Option<Register> {
        Register::ALL
            .into_iter()
            .find(|register| register.offset() == offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_magic_value_spells_virt() {
        assert_eq!(&MAGIC.to_le_bytes(), b"virt");
    }

    #[test]
    fn offsets_are_those_of_the_table_in_section_4_2_2() {
        let from_the_table = [
            0x000, 0x004, 0x008, 0x00c, 0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050, 0x060,
            0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0ac, 0x0b0, 0x0b4, 0x0b8, 0x0bc, 0x0c0,
            0x0fc,
        ];
        assert_eq!(Register::ALL.map(Register::offset), from_the_table);
    }

    #[test]
    fn every_register_is_found_at_its_offset_and_nowhere_else() {
        for offset in 0..0x200 {
            let expected = Register::ALL.iter().find(|register| register.offset() == offset);
            assert_eq!(Register::from_offset(offset).as_ref(), expected);
        }
    }
}
