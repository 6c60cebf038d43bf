//! Feature negotiation through the four feature registers (virtio 1.3, sections 2.2 and 4.2.2).

use virtio_wire::feature;

/// Features that the transport brings to every device.
const COMMON: u64 = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;

/// What is offered, what is accepted, and which half of each the driver looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Negotiation {
    offered: u64,
    required: u64,
    accepted: u64,
    device_select: u32,
    driver_select: u32,
}

impl Negotiation {
    /// A negotiation that has not begun.
    pub(crate) fn new(device_features: u64, required_features: u64) -> Negotiation {
        Negotiation {
            offered: device_features | COMMON,
            required: required_features | feature::VERSION_1,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
        }
    }

    /// Forgets what the driver has accepted.
    pub(crate) fn reset(&mut self) {
        *self = Negotiation {
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            ..*self
        };
    }

    pub(crate) fn select_device_word(&mut self, word: u32) {
        self.device_select = word;
    }

    pub(crate) fn select_driver_word(&mut self, word: u32) {
        self.driver_select = word;
    }

    /// The selected 32 offered bits; words beyond the second have none.
    pub(crate) fn offered_word(&self) -> u32 {
        let [low, high] = words(self.offered);
        match self.device_select {
            0 => low,
            1 => high,
            _ => 0,
        }
    }

    /// Accepts the selected 32 bits. Words beyond the second are ignored: nothing there was offered.
    pub(crate) fn accept_word(&mut self, bits: u32) {
        let [low, high] = words(self.accepted);
        self.accepted = match self.driver_select {
            0 => from_words(bits, high),
            1 => from_words(low, bits),
            _ => self.accepted,
        };
    }

    /// Whether the device can work with what the driver has accepted.
    pub(crate) fn fits(&self) -> bool {
        self.accepted & !self.offered == 0 && self.required & !self.accepted == 0
    }

    /// The accepted features. Final once FEATURES_OK is set.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }
}

fn words(features: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn from_words(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTRA: u64 = 1 << 1;

    fn accept(negotiation: &mut Negotiation, features: u64) {
        let [low, high] = words(features);
        negotiation.select_driver_word(0);
        negotiation.accept_word(low);
        negotiation.select_driver_word(1);
        negotiation.accept_word(high);
    }

    #[test]
    fn both_words_of_the_offer_can_be_read() {
        let mut negotiation = Negotiation::new(EXTRA, 0);
        assert_eq!(negotiation.offered_word(), 0x3000_0002);
        negotiation.select_device_word(1);
        assert_eq!(negotiation.offered_word(), 1);
        negotiation.select_device_word(2);
        assert_eq!(negotiation.offered_word(), 0);
    }

    #[test]
    fn a_subset_with_all_required_features_fits() {
        let mut negotiation = Negotiation::new(EXTRA, EXTRA);
        accept(&mut negotiation, feature::VERSION_1 | EXTRA);
        assert!(negotiation.fits());
        assert_eq!(negotiation.accepted(), feature::VERSION_1 | EXTRA);
    }

    #[test]
    fn it_does_not_fit_without_version_1_or_a_required_feature_or_with_one_not_offered() {
        for features in [0, EXTRA, feature::VERSION_1, feature::VERSION_1 | EXTRA | 1 << 5] {
            let mut negotiation = Negotiation::new(EXTRA, EXTRA);
            accept(&mut negotiation, features);
            assert!(!negotiation.fits(), "{features:#x}");
        }
    }

    #[test]
    fn a_reset_forgets_what_was_accepted() {
        let mut negotiation = Negotiation::new(EXTRA, 0);
        accept(&mut negotiation, feature::VERSION_1);
        negotiation.reset();
        assert_eq!(negotiation.accepted(), 0);
        assert!(!negotiation.fits());
    }
}
