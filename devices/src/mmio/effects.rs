//! What the VMM has to do after it called a transport. The transport itself does nothing outside of itself.

/// A turn in the life of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// The driver is ready. Chains may be waiting: [`Effects::notified`] names every queue.
    Activated,
    /// The driver has reset the device: queues are gone.
    Reset,
    /// The device has met a fault of the guest that only a reset clears. Queues rest until then.
    NeedsReset,
}

/// Some of a device's queues; it has [`QueueSet::MAX_QUEUES`] at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSet {
    /// Bit `i` is set if queue `i` is in the set.
    bits: u64,
}

impl QueueSet {
    /// Number of queues that a device can have.
    pub const MAX_QUEUES: u16 = 64;

    /// No queue.
    pub const NONE: QueueSet = QueueSet { bits: 0 };

    /// One queue; none if a device cannot have one of that index.
    pub const fn one(index: u16) -> QueueSet {
        QueueSet {
            bits: if index < QueueSet::MAX_QUEUES {
                1 << index
            } else {
                0
            },
        }
    }

    /// The queues of both sets.
    pub const fn and(self, other: QueueSet) -> QueueSet {
        QueueSet {
            bits: self.bits | other.bits,
        }
    }

    /// The queues that are in both sets.
    pub const fn and_also(self, other: QueueSet) -> QueueSet {
        QueueSet {
            bits: self.bits & other.bits,
        }
    }

    /// Whether a queue is in the set.
    pub const fn contains(self, index: u16) -> bool {
        self.bits & QueueSet::one(index).bits != 0
    }

    /// Whether no queue is in the set.
    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// The indices of the queues, from the lowest up.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..QueueSet::MAX_QUEUES).filter(move |&index| self.contains(index))
    }
}

impl FromIterator<u16> for QueueSet {
    fn from_iter<I: IntoIterator<Item = u16>>(indices: I) -> QueueSet {
        indices
            .into_iter()
            .fold(QueueSet::NONE, |set, index| set.and(QueueSet::one(index)))
    }
}

/// What to do after a call, as a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an effect that is dropped is an interrupt the guest waits for"]
pub struct Effects {
    /// Raise the device's interrupt, once. Edge-triggered: the reason is in the interrupt status register.
    pub interrupt: bool,
    /// The configuration space has changed: whoever watches the device should look at it.
    pub config_changed: bool,
    /// These queues have, or may have, chains to process: call [`super::MmioTransport::process_queue`] for each.
    pub notified: QueueSet,
    /// A turn in the device's life.
    pub lifecycle: Option<Lifecycle>,
}

impl Effects {
    /// Nothing to do.
    pub const NONE: Effects = Effects {
        interrupt: false,
        config_changed: false,
        notified: QueueSet::NONE,
        lifecycle: None,
    };

    /// The effects of this call and of a later one. Of two turns in the device's life the later one counts.
    pub fn then(self, later: Effects) -> Effects {
        Effects {
            interrupt: self.interrupt || later.interrupt,
            config_changed: self.config_changed || later.config_changed,
            notified: self.notified.and(later.notified),
            lifecycle: later.lifecycle.or(self.lifecycle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_the_queues_it_was_made_of() {
        let set: QueueSet = [63, 0, 5, 64, u16::MAX].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(!set.is_empty() && QueueSet::NONE.is_empty());
    }

    #[test]
    fn no_effect_is_lost_when_two_calls_are_joined() {
        let interrupt = Effects {
            interrupt: true,
            notified: QueueSet::one(1),
            ..Effects::NONE
        };
        let reset = Effects {
            lifecycle: Some(Lifecycle::Reset),
            notified: QueueSet::one(0),
            ..Effects::NONE
        };
        let both = interrupt.then(reset);
        assert!(both.interrupt);
        assert_eq!(both.notified.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(both.lifecycle, Some(Lifecycle::Reset));
    }
}
