//! What a guest has put into a queue of its console, and ends or resets before anybody has looked at it.

use std::fs;

use virtio_wire::mmio::Register;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::bus::{MachineRequest, ResetCause};
use crate::machine::devices::MachineDevice;
use crate::spec::PortEnd;

const TEXT: &[u8] = b"the last words";

/// A driver for the transmit queue, which writes [`TEXT`] and notifies nobody.
fn write_without_a_word(handle: &VmHandle) {
    let (table, driver, device, text) = (0x10_0000_u64, 0x10_1000_u64, 0x10_2000_u64, 0x10_3000_u64);
    let console = handle.shared.devices.console.shell();
    let set = |register: Register, value: u32| console.write(register.offset(), &value.to_le_bytes());
    let low = |gpa: u64| u32::try_from(gpa).unwrap();
    for (register, value) in [
        (Register::Status, 1),
        (Register::Status, 3),
        // VIRTIO_F_VERSION_1
        (Register::DriverFeaturesSel, 1),
        (Register::DriverFeatures, 1),
        (Register::Status, 11),
        (Register::QueueSel, 1),
        (Register::QueueSize, 8),
        (Register::QueueDescLow, low(table)),
        (Register::QueueDriverLow, low(driver)),
        (Register::QueueDeviceLow, low(device)),
        (Register::QueueReady, 1),
        (Register::Status, 15),
    ] {
        set(register, value);
    }
    let memory = handle.shared.ram.device_view();
    let put = |gpa: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    put(text, TEXT);
    // One descriptor (address, length, no flags), and one entry that is available.
    put(table, &text.to_le_bytes());
    put(table + 8, &u32::try_from(TEXT.len()).unwrap().to_le_bytes());
    put(table + 12, &[0; 4]);
    put(driver, &[0, 0, 1, 0, 0, 0]);
}

#[test]
fn what_a_guest_has_written_before_its_end_or_reset_arrives() {
    type End = fn(&VmHandle);
    let stop: End = VmHandle::stop;
    let off: End = |handle| handle.shared.serve(MachineRequest::PowerOff);
    let reset: End = |handle| {
        handle
            .shared
            .serve(MachineRequest::Reset(ResetCause::ResetRegister));
    };
    for (end, on_reboot) in [
        (stop, OnReboot::Exit),
        (off, OnReboot::Exit),
        (reset, OnReboot::Exit),
        (reset, OnReboot::Reboot),
    ] {
        let console = NamedTempFile::new().unwrap();
        let guest = guest(&Code::default().spin().0, |spec| {
            spec.hvc = HvcMode::End(PortEnd::File(console.path().into()));
            spec.on_reboot = on_reboot;
        });
        let handle = guest.vm.handle();
        let running = thread::spawn(move || guest.run());
        until("running", || handle.status().state == VmState::Running);
        write_without_a_word(&handle);
        end(&handle);
        if on_reboot == OnReboot::Reboot {
            until("the reboot", || handle.status().reboots == 1);
            handle.stop();
        }
        running.join().unwrap();
        assert_eq!(fs::read(console.path()).unwrap(), TEXT);
    }
}

/// Ends and resets may come upon the device's queue in other ways too; here nothing else looks at it.
#[test]
fn what_was_written_without_a_word_is_taken_by_a_drain() {
    let console = NamedTempFile::new().unwrap();
    let guest = guest(&Code::default().spin().0, |spec| {
        spec.hvc = HvcMode::End(PortEnd::File(console.path().into()));
    });
    let handle = guest.vm.handle();
    let running = thread::spawn(move || guest.run());
    until("running", || handle.status().state == VmState::Running);
    write_without_a_word(&handle);
    assert_eq!(
        fs::read(console.path()).unwrap(),
        b"",
        "somebody looked at the queue"
    );
    for device in handle.shared.devices.iter() {
        device.drain(&handle.shared).unwrap();
    }
    assert_eq!(fs::read(console.path()).unwrap(), TEXT);
    handle.stop();
    running.join().unwrap();
}
