//! `struct virtio_balloon_config` (virtio 1.3, section 5.5.4): 16 bytes, of which the driver writes `actual` and
//! `poison_val`.

use crate::le;

/// Byte offsets of the fields in the configuration space.
pub mod offset {
    /// `num_pages`, le32.
    pub const NUM_PAGES: usize = 0;
    /// `actual`, le32, written by the driver.
    pub const ACTUAL: usize = 4;
    /// `free_page_hint_cmd_id`, le32.
    pub const FREE_PAGE_HINT_CMD_ID: usize = 8;
    /// `poison_val`, le32, written by the driver.
    pub const POISON_VAL: usize = 12;
}

/// The configuration of a balloon device. Numbers of pages are in units of [`super::PAGE_SIZE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How many pages the device wants in the balloon. A change comes with a configuration interrupt.
    pub num_pages: u32,
    /// How many pages the driver says are in the balloon.
    pub actual: u32,
    /// One of [`super::command`], or the id of the hinting that the device wants; without meaning unless
    /// [`super::feature::FREE_PAGE_HINT`] was negotiated.
    pub free_page_hint_cmd_id: u32,
    /// What the guest fills free pages with; without meaning unless [`super::feature::PAGE_POISON`] was negotiated.
    pub poison_val: u32,
}

impl Config {
    /// Size on the wire.
    pub const SIZE: usize = 16;

    /// The bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, offset::NUM_PAGES, self.num_pages.to_le_bytes());
        le::put(&mut bytes, offset::ACTUAL, self.actual.to_le_bytes());
        le::put(
            &mut bytes,
            offset::FREE_PAGE_HINT_CMD_ID,
            self.free_page_hint_cmd_id.to_le_bytes(),
        );
        le::put(&mut bytes, offset::POISON_VAL, self.poison_val.to_le_bytes());
        bytes
    }

    /// Reads a configuration. Any bytes are one: a driver checks the values before it relies on them.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Config {
        Config {
            num_pages: le::u32_at(bytes, offset::NUM_PAGES),
            actual: le::u32_at(bytes, offset::ACTUAL),
            free_page_hint_cmd_id: le::u32_at(bytes, offset::FREE_PAGE_HINT_CMD_ID),
            poison_val: le::u32_at(bytes, offset::POISON_VAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_bytes_of_section_5_5_4() {
        let config = Config {
            num_pages: 0x0102_0304,
            actual: 0x0506_0708,
            free_page_hint_cmd_id: 0x090a_0b0c,
            poison_val: 0xaaaa_aaab,
        };
        #[rustfmt::skip]
        let golden: [u8; 16] = [
            4, 3, 2, 1,             // le32 num_pages
            8, 7, 6, 5,             // le32 actual
            12, 11, 10, 9,          // le32 free_page_hint_cmd_id
            0xab, 0xaa, 0xaa, 0xaa, // le32 poison_val
        ];
        assert_eq!(config.encode(), golden);
        assert_eq!(Config::decode(&golden), config);
    }
}
