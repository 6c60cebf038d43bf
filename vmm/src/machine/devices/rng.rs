//! The entropy device, fed by the kernel's random number generator.

use std::io;
use std::sync::Arc;

use devices::rng::{EntropySource, Rng};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{MachineDevice, Parts};
use crate::control::report::VmStatus;
use crate::machine::VmError;
use crate::machine::virtio::{Shell, VirtioShell};

/// The entropy device.
#[derive(Debug)]
pub(super) struct RngDevice {
    shell: Arc<VirtioShell<Rng<HostEntropy>>>,
}

/// getrandom(2), without waiting: a host that runs VMs has long been seeded.
#[derive(Debug)]
struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match getrandom(&mut *rest, GetRandomFlags::NONBLOCK) {
                Ok(filled) => rest = rest.get_mut(filled..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl RngDevice {
    /// An entropy device, if the machine is to have one.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Option<Arc<Self>>, VmError> {
        if !parts.spec.rng {
            return Ok(None);
        }
        let shell = VirtioShell::new(Rng::new(HostEntropy), parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Some(Arc::new(Self {
            shell: Arc::new(shell),
        })))
    }
}

impl MachineDevice for RngDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn report(&self, status: &mut VmStatus) {
        status.entropy_bytes = Some(self.shell.look(|rng| rng.device().bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_buffer_is_filled_and_not_twice_with_the_same() {
        let mut buffers = [[0_u8; 600]; 2];
        for buffer in &mut buffers {
            HostEntropy.fill(buffer).unwrap();
        }
        assert_ne!(buffers[0], buffers[1]);
        assert!(buffers[0][400..].iter().any(|byte| *byte != 0));
    }
}
