//! VMMs as processes: the one measured and a peer, with the smallest kernel in them.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::Home;

use crate::kernel;

/// Memory of the guests, in MiB.
pub(crate) const MEMORY_MIB: u64 = 256;

/// A way to start a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// `ballast run`, with a hot-plug region of 2 GiB.
    Ballast,
    /// The same with a balloon.
    BallastWithBalloon,
    /// `qemu-system-x86_64 -M microvm`, its smallest machine.
    Qemu,
}

/// A VMM whose guest has spoken. Ends with the value.
pub(crate) struct Spoken {
    child: Child,
    /// From before the process was made until its guest's first word was read.
    pub(crate) after: Duration,
}

/// Where VMMs run, and the kernel they boot.
pub(crate) struct Place {
    home: Home,
    kernel: PathBuf,
}

impl Place {
    /// A place of its own.
    ///
    /// # Errors
    /// The kernel cannot be written.
    pub(crate) fn new() -> io::Result<Place> {
        let home = Home::new();
        let kernel = home.files().join("smallest");
        fs::write(&kernel, kernel::image())?;
        Ok(Place { home, kernel })
    }

    /// Starts a VMM and waits for its guest to speak.
    ///
    /// # Errors
    /// It cannot be started, or ends without a word.
    pub(crate) fn start(&self, vmm: Vmm) -> io::Result<Spoken> {
        let mut command = self.command(vmm);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let mut word = [0];
        let read = child
            .stdout
            .as_mut()
            .map_or(Ok(0), |stdout| stdout.read(&mut word));
        let after = start.elapsed();
        let spoken = Spoken { child, after };
        if read? == 1 && word == [kernel::SAYS] {
            Ok(spoken)
        } else {
            Err(io::Error::other(format!("{vmm:?} ended, or said something else")))
        }
    }

    fn command(&self, vmm: Vmm) -> Command {
        let memory = format!("{MEMORY_MIB}M");
        match vmm {
            Vmm::Ballast | Vmm::BallastWithBalloon => {
                let mut command = self.home.command(["run", "--memory", &memory, "--hotplug", "2G"]);
                if vmm == Vmm::BallastWithBalloon {
                    command.args(["--balloon", "64M"]);
                }
                command.args(["--serial", "stdout", "--kernel"]).arg(&self.kernel);
                command
            }
            Vmm::Qemu => {
                let mut command = Command::new("/usr/bin/qemu-system-x86_64");
                // Its default CPU, but for what software KVM has not, of which it would warn.
                command.args([
                    "-accel",
                    "kvm",
                    "-cpu",
                    "qemu64,-pni",
                    "-M",
                    "microvm",
                    "-m",
                    &memory,
                ]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
                command.args(["-serial", "stdio", "-kernel"]).arg(&self.kernel);
                self.home.settle(&mut command);
                command
            }
        }
    }
}

impl Spoken {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
