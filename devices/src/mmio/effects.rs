//! What the VMM has to do after it called a transport. The transport itself does nothing outside of itself.

/// A turn in the life of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// The driver is ready. Every queue should be processed once: chains may be waiting.
    Activated,
    /// The driver has reset the device: queues are gone.
    Reset,
    /// The device has met a fault of the guest that only a reset clears. Queues rest until then.
    NeedsReset,
}

/// What to do after a call, as a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an effect that is dropped is an interrupt the guest waits for"]
pub struct Effects {
    /// Raise the device's interrupt, once. Edge-triggered: the reason is in the interrupt status register.
    pub interrupt: bool,
    /// The configuration space has changed: whoever watches the device should look at it.
    pub config_changed: bool,
    /// This queue has, or may have, chains to process: call [`super::MmioTransport::process_queue`].
    pub notified: Option<u16>,
    /// A turn in the device's life.
    pub lifecycle: Option<Lifecycle>,
}

impl Effects {
    /// Nothing to do.
    pub const NONE: Effects = Effects {
        interrupt: false,
        config_changed: false,
        notified: None,
        lifecycle: None,
    };

    /// The effects of this call and of a later one. Of two lifecycle turns or notified queues the later one counts.
    pub fn then(self, later: Effects) -> Effects {
        Effects {
            interrupt: self.interrupt || later.interrupt,
            config_changed: self.config_changed || later.config_changed,
            notified: later.notified.or(self.notified),
            lifecycle: later.lifecycle.or(self.lifecycle),
        }
    }
}
