//! The console device (virtio 1.3, section 5.3).

use crate::le;

/// Queue 0: bytes from the host to the guest.
pub const QUEUE_RECEIVE: u16 = 0;
/// Queue 1: bytes from the guest to the host.
pub const QUEUE_TRANSMIT: u16 = 1;

/// Queue 2: control messages from the device to the driver, with [`feature::MULTIPORT`].
pub const QUEUE_CONTROL_RECEIVE: u16 = 2;
/// Queue 3: control messages from the driver to the device, with [`feature::MULTIPORT`].
pub const QUEUE_CONTROL_TRANSMIT: u16 = 3;
/// The receive queue of port 1; its transmit queue is the next one, and then come those of port 2.
pub const QUEUE_FIRST_PORT: u16 = 4;

/// Feature bits of the console device, as masks of the 64-bit feature word (section 5.3.3).
pub mod feature {
    /// `cols` and `rows` in the configuration are valid (bit 0).
    pub const SIZE: u64 = 1 << 0;
    /// The device has more than one port and control queues (bit 1).
    pub const MULTIPORT: u64 = 1 << 1;
    /// `emerg_wr` can be written, even before any negotiation (bit 2).
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Byte offsets of the fields in the configuration space.
pub mod offset {
    /// `cols`, le16.
    pub const COLS: usize = 0;
    /// `rows`, le16.
    pub const ROWS: usize = 2;
    /// `max_nr_ports`, le32.
    pub const MAX_NR_PORTS: usize = 4;
    /// `emerg_wr`, le32: the low byte of a write goes to the host's log.
    pub const EMERG_WR: usize = 8;
}

/// `struct virtio_console_config` (section 5.3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Width of the console in characters; valid with [`feature::SIZE`].
    pub cols: u16,
    /// Height of the console in characters; valid with [`feature::SIZE`].
    pub rows: u16,
    /// Number of ports; valid with [`feature::MULTIPORT`].
    pub max_nr_ports: u32,
    /// Write-only for the driver; valid with [`feature::EMERG_WRITE`].
    pub emerg_wr: u32,
}

impl Config {
    /// Size on the wire.
    pub const SIZE: usize = 12;

    /// The bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, offset::COLS, self.cols.to_le_bytes());
        le::put(&mut bytes, offset::ROWS, self.rows.to_le_bytes());
        le::put(&mut bytes, offset::MAX_NR_PORTS, self.max_nr_ports.to_le_bytes());
        le::put(&mut bytes, offset::EMERG_WR, self.emerg_wr.to_le_bytes());
        bytes
    }

    /// Reads a configuration. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Config {
        Config {
            cols: le::u16_at(bytes, offset::COLS),
            rows: le::u16_at(bytes, offset::ROWS),
            max_nr_ports: le::u32_at(bytes, offset::MAX_NR_PORTS),
            emerg_wr: le::u32_at(bytes, offset::EMERG_WR),
        }
    }
}

/// Values of [`Control::event`] (section 5.3.6.2).
pub mod event {
    /// The driver is there: value 1, or has failed: 0.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const PORT_ADD: u16 = 1;
    /// The driver is ready for a port: value 1.
    pub const PORT_READY: u16 = 3;
    /// The port is to be a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// The sender has opened (1) or closed (0) the port.
    pub const PORT_OPEN: u16 = 6;
    /// The port's name follows the message, without a zero at its end.
    pub const PORT_NAME: u16 = 7;
}

/// `struct virtio_console_control` (section 5.3.6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Number of the port.
    pub id: u32,
    /// One of [`event`].
    pub event: u16,
    /// By event.
    pub value: u16,
}

impl Control {
    /// Size on the wire.
    pub const SIZE: usize = 8;

    /// The bytes of the message.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.id.to_le_bytes());
        le::put(&mut bytes, 4, self.event.to_le_bytes());
        le::put(&mut bytes, 6, self.value.to_le_bytes());
        bytes
    }

    /// Reads a message. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Control {
        Control {
            id: le::u32_at(bytes, 0),
            event: le::u16_at(bytes, 4),
            value: le::u16_at(bytes, 6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_message_has_the_bytes_of_section_5_3_6_2() {
        let control = Control {
            id: 0x0102_0304,
            event: 0x0506,
            value: 0x0708,
        };
        let golden = [4, 3, 2, 1, 6, 5, 8, 7];
        assert_eq!(control.encode(), golden);
        assert_eq!(Control::decode(&golden), control);
    }

    #[test]
    fn the_configuration_has_the_bytes_of_section_5_3_4() {
        let config = Config {
            cols: 0x0102,
            rows: 0x0304,
            max_nr_ports: 0x0506_0708,
            emerg_wr: 0x41,
        };
        let golden = [2, 1, 4, 3, 8, 7, 6, 5, 0x41, 0, 0, 0];
        assert_eq!(config.encode(), golden);
        assert_eq!(Config::decode(&golden), config);
    }
}
