//! Whole machines on this host's KVM, each with a guest of a few instructions. Without /dev/kvm these tests fail.

mod code;
mod last_words;
mod life;
mod resizes;
mod violations;

use std::num::{NonZeroU8, NonZeroU32};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::*;
use crate::boot::testing::{CODE_AT, pvh_image};
use crate::control::report::VmState;
use crate::journal::{Event, EventKind, ResizeStep};
use crate::machine::layout::{GIB, MIB};
use crate::spec::{Backing, HotplugSpec, HvcMode, OnReboot, OnViolation, Payload, SerialMode, VmName};

use code::{Code, WINDOW, WINDOW_START, with_window};

const BLOCK: u64 = 2 * MIB;

struct Guest {
    vm: Vm,
    serial: NamedTempFile,
}

fn guest(code: &[u8], change: impl FnOnce(&mut VmSpec)) -> Guest {
    let kernel = NamedTempFile::new().unwrap();
    std::fs::write(kernel.path(), pvh_image(code)).unwrap();
    let serial = NamedTempFile::new().unwrap();
    let mut spec = VmSpec {
        name: VmName::new("test").unwrap(),
        payload: Payload::Kernel {
            kernel: kernel.path().into(),
            initrd: None,
            cmdline: String::new(),
        },
        memory: 32 * MIB,
        backing: Backing::Anonymous,
        hotplug: Vec::new(),
        balloon: None,
        cpus: NonZeroU8::MIN,
        nodes: Vec::new(),
        on_violation: OnViolation::Kill,
        on_reboot: OnReboot::Exit,
        reboot_limit: None,
        serial: SerialMode::File(serial.path().into()),
        hvc: HvcMode::Channel,
        console_ports: Vec::new(),
        net: Vec::new(),
        vsock: None,
        disks: Vec::new(),
        rng: false,
    };
    change(&mut spec);
    Guest {
        vm: Vm::build(&spec).expect("the machine tests need /dev/kvm"),
        serial,
    }
}

fn with_region(spec: &mut VmSpec) {
    spec.hotplug = vec![HotplugSpec::of_size(64 * BLOCK)];
}

impl Guest {
    fn run(self) -> (VmExit, String) {
        let exit = self.vm.run().unwrap();
        (exit, std::fs::read_to_string(self.serial.path()).unwrap())
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
