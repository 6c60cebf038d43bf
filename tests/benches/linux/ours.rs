//! ballast with the guest: one region, a balloon, and one target for both.

use std::error::Error;

use integration_tests::{Home, LinuxGuest};

use crate::contest::{BLOCKS_MIB, BOOT_MIB, CMDLINE, Contestant, MIB};

/// A VM with a guest at its shell.
pub(crate) struct Ours {
    guest: LinuxGuest,
}

impl Ours {
    /// Boots it.
    ///
    /// # Errors
    /// None: the harness panics when it does not get there.
    pub(crate) fn boot(home: &Home) -> Result<Ours, Box<dyn Error>> {
        let (memory, region) = (format!("{BOOT_MIB}M"), format!("{BLOCKS_MIB}M"));
        let arguments = [
            "--memory",
            &memory,
            "--hotplug",
            &region,
            "--balloon",
            "floor=128M",
        ];
        Ok(Ours {
            guest: LinuxGuest::boot(home, "ours", &arguments, CMDLINE),
        })
    }
}

impl Contestant for Ours {
    fn name(&self) -> &'static str {
        "ballast"
    }

    fn pid(&self) -> u32 {
        self.guest.vm.pid()
    }

    fn shell(&mut self, line: &str) -> Result<String, Box<dyn Error>> {
        Ok(self.guest.shell(line))
    }

    fn plug_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        self.guest.vm.resize_to(BOOT_MIB * MIB + bytes);
        Ok(())
    }

    fn inflate_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        self.guest.vm.resize_to(BOOT_MIB * MIB - bytes);
        Ok(())
    }
}
