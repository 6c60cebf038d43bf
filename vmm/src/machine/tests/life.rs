//! How a machine starts, ends, is held and boots again.

use super::*;

#[test]
fn a_guest_prints_and_powers_off() {
    let code = Code::default().out(0x3F8, b'h').out(0x3F8, b'i').power_off();
    assert_eq!(guest(&code.0, |_| ()).run(), (VmExit::Shutdown, "hi".to_owned()));
}

#[test]
fn a_reset_through_either_door_is_a_reboot() {
    for (port, value) in [(0xCF9, 0x06), (0x64, 0xFE)] {
        let code = Code::default().out(port, value).spin();
        assert_eq!(guest(&code.0, |_| ()).run().0, VmExit::Reboot);
    }
}

/// What a guest prints that never ends by itself, once it has printed `len` bytes and was stopped.
fn printed(code: &Code, len: usize, change: impl FnOnce(&mut VmSpec)) -> (Vec<u8>, VmStatus) {
    let guest = guest(&code.0, change);
    let (handle, path) = (guest.vm.handle(), guest.serial.path().to_owned());
    let running = thread::spawn(move || guest.run());
    until("output", || {
        std::fs::read(&path).is_ok_and(|text| text.len() >= len)
    });
    handle.stop();
    let (exit, text) = running.join().unwrap();
    assert_eq!(exit, VmExit::Stopped);
    (text.into_bytes()[..len].to_vec(), handle.status())
}

#[test]
fn a_reset_boots_the_guest_again_in_the_same_process() {
    let dead_end = Code::default().raw(&[0x0F, 0x0B]);
    let doors = [(0xCF9, 0x06), (0x64, 0xFE)].map(|(port, value)| Code::default().out(port, value).spin());
    for door in doors.iter().chain([&dead_end]) {
        for cpus in [1, 3] {
            let code = Code::default().out(0x3F8, b'b').raw(&door.0);
            let (text, status) = printed(&code, 4, |spec| {
                spec.on_reboot = OnReboot::Reboot;
                spec.cpus = NonZeroU8::new(cpus).unwrap();
            });
            assert_eq!(text, b"bbbb");
            assert!(status.reboots >= 3, "{} reboots", status.reboots);
        }
    }
}

#[test]
fn a_guest_that_cannot_boot_ends_with_its_resets_counted() {
    for (door, cause) in [
        (Code::default().out(0xCF9, 0x06).spin(), "reset-register"),
        (Code::default().raw(&[0x0F, 0x0B]), "triple-fault"),
    ] {
        let code = Code::default().out(0x3F8, b'b').raw(&door.0);
        let end = guest(&code.0, |spec| {
            spec.on_reboot = OnReboot::Reboot;
            spec.reboot_limit = NonZeroU32::new(5);
        });
        let (resets, text) = (5, "bbbbb".to_owned());
        assert_eq!(end.run(), (VmExit::RebootLoop { resets, cause }, text));
    }
}

#[test]
fn a_rebooted_guest_finds_neither_its_memory_nor_its_devices_as_it_left_them() {
    // A word of boot memory, and the status register of the first virtio device: shown, then changed.
    let (word, status) = (8 << 20, 0xD000_0070);
    let code = Code::default().load(word).print_al().store(word, 1);
    let code = code.load(status).print_al().store(status, 1);
    let code = code.load(word).print_al().load(status).print_al();
    let (text, _) = printed(&code.out(0xCF9, 0x06).spin(), 8, |spec| {
        spec.on_reboot = OnReboot::Reboot;
    });
    assert_eq!(text, [0, 0, 1, 1, 0, 0, 1, 1]);
}

#[test]
fn a_held_guest_prints_nothing_until_it_is_let_go() {
    let code = Code::default().out(0x3F8, b'.').raw(&[0xEB, 0xF7]);
    for cpus in [1, 3] {
        let guest = guest(&code.0, |spec| spec.cpus = NonZeroU8::new(cpus).unwrap());
        let (handle, path) = (guest.vm.handle(), guest.serial.path().to_owned());
        let printed = || std::fs::metadata(&path).unwrap().len();
        let running = thread::spawn(move || guest.run());
        until("output", || printed() > 0);
        assert!(handle.pause());
        assert_eq!(handle.status().state, VmState::Paused);
        // What was printed before is on its way for a moment, and the CPU finishes the instruction it is at.
        let mut before = printed();
        until("silence", || {
            thread::sleep(Duration::from_millis(50));
            std::mem::replace(&mut before, printed()) == printed()
        });
        thread::sleep(Duration::from_millis(100));
        assert_eq!(printed(), before, "a held guest prints");
        assert!(handle.resume());
        until("more output", || printed() > before);
        assert!(handle.pause());
        handle.stop();
        assert_eq!(
            running.join().unwrap().0,
            VmExit::Stopped,
            "a held VM can be ended"
        );
    }
}

#[test]
fn a_panic_comes_with_its_message() {
    let mut code = Code::default();
    for byte in b"panicked at main.rs:7\n" {
        code = code.store(0xD000_0108, u32::from(*byte));
    }
    let code = code.out(0x505, 1).spin();
    let expected = VmExit::Panicked {
        message: "panicked at main.rs:7".to_owned(),
    };
    assert_eq!(guest(&code.0, |_| ()).run().0, expected);
}

#[test]
fn a_guest_without_handlers_ends_at_its_first_fault() {
    let (exit, _) = guest(&[0x0F, 0x0B], |_| ()).run();
    assert!(
        matches!(&exit, VmExit::Panicked { message } if message.starts_with("triple fault")),
        "{exit:?}"
    );
}

#[test]
fn a_guest_that_spins_or_sleeps_can_be_stopped() {
    for code in [
        Code::default().out(0x3F8, b'.').spin(),
        Code::default().out(0x3F8, b'.').raw(&[0xFA, 0xF4]),
    ] {
        for cpus in [1, 4] {
            let guest = guest(&code.0, |spec| spec.cpus = NonZeroU8::new(cpus).unwrap());
            let handle = guest.vm.handle();
            let path = guest.serial.path().to_owned();
            let running = thread::spawn(move || guest.run());
            until("output", || std::fs::read(&path).is_ok_and(|text| text == b"."));
            assert_eq!(handle.status().state, VmState::Running);
            handle.stop();
            assert_eq!(running.join().unwrap().0, VmExit::Stopped);
        }
    }
}

#[test]
fn a_stop_before_the_start_is_heard() {
    let guest = guest(&Code::default().spin().0, |_| ());
    guest.vm.handle().stop();
    assert_eq!(guest.run().0, VmExit::Stopped);
}

#[test]
fn a_vm_costs_little_beyond_its_guest() {
    let guest = guest(&Code::default().spin().0, with_region);
    let status = guest.vm.handle().status();
    assert!(
        status.host_resident_bytes > 0,
        "the kernel and the tables are resident"
    );
    assert!(
        status.host_resident_bytes <= 4 * 2 * MIB,
        "{} bytes",
        status.host_resident_bytes
    );
    assert_eq!(
        (status.boot_memory, status.region_size, status.total_plugged),
        (32 * MIB, 64 * BLOCK, 32 * MIB)
    );
}

#[test]
fn files_and_sizes_that_cannot_be_end_with_one_line() {
    let spec = |memory, region_size| VmSpec {
        name: VmName::new("bad").unwrap(),
        payload: Payload::Kernel {
            kernel: "/nonexistent/bzImage".into(),
            initrd: None,
            cmdline: String::new(),
        },
        memory,
        backing: Backing::Anonymous,
        hotplug: vec![HotplugSpec::of_size(region_size)],
        balloon: None,
        cpus: NonZeroU8::MIN,
        nodes: Vec::new(),
        on_violation: OnViolation::Kill,
        on_reboot: OnReboot::Exit,
        reboot_limit: None,
        serial: SerialMode::Discard,
        hvc: HvcMode::Channel,
        console_ports: Vec::new(),
        net: Vec::new(),
        vsock: None,
        disks: Vec::new(),
        rng: false,
    };
    let missing = Vm::build(&spec(32 * MIB, BLOCK)).unwrap_err().to_string();
    assert!(
        missing.starts_with("/nonexistent/bzImage: No such file"),
        "{missing}"
    );
    let kernel = NamedTempFile::new().unwrap();
    std::fs::write(kernel.path(), pvh_image(&[0xF4])).unwrap();
    let too_large = VmSpec {
        payload: Payload::Kernel {
            kernel: kernel.path().into(),
            initrd: None,
            cmdline: String::new(),
        },
        ..spec(32 * MIB, 1 << 60)
    };
    let too_large = Vm::build(&too_large).unwrap_err().to_string();
    assert!(
        too_large.contains("physical address bits") && !too_large.contains('\n'),
        "{too_large}"
    );
}
