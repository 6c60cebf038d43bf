//! The console: the guest's control channel and the place for its last words.

use std::sync::Arc;

use devices::console::{Console, TO_GUEST_LIMIT};
use devices::mmio::Effects;

use super::{MachineDevice, OnLoop, Parts};
use crate::machine::VmError;
use crate::machine::channel::GuestPort;
use crate::machine::virtio::{Shell, VirtioShell};

/// Bytes taken from the guest at a time.
const PIECE: usize = 64 << 10;

/// The console device.
#[derive(Debug)]
pub(in super::super) struct ConsoleDevice {
    shell: Arc<VirtioShell<Console>>,
}

impl ConsoleDevice {
    /// A console without a size.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, VmError> {
        let shell = VirtioShell::new(Console::new(None), parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Self {
            shell: Arc::new(shell),
        })
    }

    /// What the guest wrote to its emergency console.
    pub(in super::super) fn last_words(&self) -> String {
        let words = self.shell.look(|console| console.device().emergency_output());
        String::from_utf8_lossy(&words).trim().to_owned()
    }
}

impl MachineDevice for ConsoleDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn after_queue(&self, _: u16, _: bool, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        loop {
            let bytes = self.shell.change(|console| console.take_from_guest(PIECE));
            if bytes.is_empty() {
                return Ok(());
            }
            on.machine.channel.receive(&bytes);
        }
    }
}

impl GuestPort for ConsoleDevice {
    fn is_open(&self) -> bool {
        self.shell.is_live()
    }

    fn send(&self, bytes: &[u8]) -> bool {
        self.shell.change(|console| {
            if TO_GUEST_LIMIT - console.device().to_guest_len() < bytes.len() {
                return (false, Effects::NONE);
            }
            let (accepted, effects) = console.push_to_guest(bytes);
            (accepted == bytes.len(), effects)
        })
    }
}
