//! Whole machines on this host's KVM, each with a guest of a few instructions. Without /dev/kvm these tests fail.

use std::num::NonZeroU8;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::*;
use crate::boot::testing::{CODE_AT, pvh_image};
use crate::control::report::VmState;
use crate::journal::{Event, EventKind, ResizeStep};
use crate::machine::layout::{GIB, MIB};
use crate::spec::{Backing, HotplugSpec, HvcMode, OnReboot, OnViolation, Payload, SerialMode, VmName};

const BLOCK: u64 = 2 * MIB;

/// Code for 32-bit and 64-bit mode alike, instruction by instruction.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xBA, low, high, 0xB0, value, 0xEE])
    }

    /// `mov dword ptr [address], value`
    fn store(self, address: u32, value: u32) -> Self {
        self.raw(&[0xC7, 0x04, 0x25])
            .raw(&address.to_le_bytes())
            .raw(&value.to_le_bytes())
    }

    /// `mov eax, [address]`
    fn load(self, address: u32) -> Self {
        self.raw(&[0x8B, 0x04, 0x25]).raw(&address.to_le_bytes())
    }

    /// `mov eax, value; mov crN, eax`
    fn control(self, register: u8, value: u32) -> Self {
        self.raw(&[0xB8])
            .raw(&value.to_le_bytes())
            .raw(&[0x0F, 0x22, 0xC0 | register << 3])
    }

    /// In 64-bit mode with [`with_window`]'s segments: goes on at ring 3, without a way back.
    fn enter_ring_3(self, at: u32) -> Self {
        let push = |code: Self, value: u32| code.raw(&[0x68]).raw(&value.to_le_bytes());
        // mov esp, stack; then SS, RSP, RFLAGS, CS, RIP; iretq. The frame is 5 pushes of 5 bytes behind 5.
        let stack = CODE_AT + 0xF00;
        let next = at + u32::try_from(self.0.len()).unwrap() + 5 + 5 * 5 + 2;
        let code = self.raw(&[0xBC]).raw(&stack.to_le_bytes());
        let frame = [0x23, stack, 0x02, 0x2B, next];
        frame.into_iter().fold(code, push).raw(&[0x48, 0xCF])
    }

    /// `mov dx, COM1; out dx, al`
    fn print_al(self) -> Self {
        self.raw(&[0x66, 0xBA, 0xF8, 0x03, 0xEE])
    }

    fn power_off(self) -> Self {
        self.out(0x600, 0x34).spin()
    }

    fn spin(self) -> Self {
        self.raw(&[0xEB, 0xFE])
    }
}

/// Where the gibibyte at 4 GiB is mapped in [`with_window`], whose first gibibyte is mapped onto itself.
const WINDOW: u32 = 0x4000_0000;

/// Length of what [`with_window`] puts before the code.
const WINDOW_START: u32 = 3 * 8 + 14 + 7 + 7;

/// `code` in long mode, with page tables that show it the start of the region.
fn with_window(code: &Code) -> Vec<u8> {
    let page_at = |index: u32| CODE_AT + index * 0x1000;
    let (gdt, pml4, pdpt, low, high) = (page_at(1), page_at(2), page_at(3), page_at(4), page_at(5));
    let gdt_pointer = gdt + 0x800;
    let start = Code::default()
        // PAE, and SSE for those who use it.
        .control(4, 1 << 5 | 1 << 9)
        .control(3, pml4)
        // EFER.LME
        .raw(&[0xB9, 0x80, 0, 0, 0xC0, 0x31, 0xD2, 0xB8, 0, 1, 0, 0, 0x0F, 0x30])
        .control(0, 1 << 31 | 0x11)
        // lgdt [gdt_pointer]
        .raw(&[0x0F, 0x01, 0x15])
        .raw(&gdt_pointer.to_le_bytes());
    // jmp 0x10:(the instruction behind this one, which is 7 bytes long)
    let next = CODE_AT + u32::try_from(start.0.len()).unwrap() + 7;
    let start = start.raw(&[0xEA]).raw(&next.to_le_bytes()).raw(&[0x10, 0]);
    assert_eq!(u32::try_from(start.0.len()).unwrap(), WINDOW_START);
    let mut segment = start.raw(&code.0).0;
    segment.resize(0x1000, 0xF4);
    let mut page = |words: Vec<u64>| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(0x1000, 0);
        segment.extend(bytes);
    };
    let mut descriptors = crate::hv::GDT.to_vec();
    // Flat data (0x23) and code (0x2b) of ring 3.
    descriptors.extend([0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF]);
    descriptors.resize(0x100, 0);
    descriptors.extend([u64::from(gdt) << 16 | 47, 0]);
    page(descriptors);
    page(vec![u64::from(pdpt) | 7]);
    page(vec![u64::from(low) | 7, u64::from(high) | 7]);
    page((0..512).map(|index| (index * BLOCK) | 0x87).collect());
    page((0..512).map(|index| (4 * GIB + index * BLOCK) | 0x87).collect());
    segment
}

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
fn touching_an_unplugged_block_ends_the_vm_with_the_address() {
    let offset = 5 * 0x20_0000 + 0x123;
    for touch in [
        Code::default().load(WINDOW + offset),
        Code::default().store(WINDOW + offset, 1),
    ] {
        let code = with_window(&touch.out(0x3F8, b'!').power_off());
        let guest = guest(&code, with_region);
        let handle = guest.vm.handle();
        let (exit, serial) = guest.run();
        // KVM reports the address itself, or that of its page.
        let VmExit::Violation(Violation { gpa, block, .. }) = exit else {
            panic!("{exit:?}")
        };
        assert_eq!((gpa & !0xFFF, block), (4 * GIB + u64::from(offset & !0xFFF), 5));
        assert_eq!(serial, "", "the guest must not get past the access");
        let status = handle.status();
        assert_eq!((status.violations, status.last_violation_gpa), (1, Some(gpa)));
        assert_eq!(status.state, VmState::Exiting);
    }
}

#[test]
fn a_program_that_touches_an_unplugged_block_is_caught_to_the_byte() {
    let offset = 5 * 0x20_0000 + 0x123;
    let start = || Code::default().enter_ring_3(CODE_AT + WINDOW_START);
    for touch in [start().load(WINDOW + offset), start().store(WINDOW + offset, 1)] {
        let guest = guest(&with_window(&touch.spin()), with_region);
        // Others on both sides are plugged: the address must be told from theirs.
        let mut backend = guest.vm.handle.shared.ram.backend(0).unwrap();
        backend.plug_blocks(0, 5).unwrap();
        backend.plug_blocks(6, 58).unwrap();
        let expected = VmExit::Violation(Violation {
            gpa: 4 * GIB + u64::from(offset),
            region: 0,
            block: 5,
        });
        assert_eq!(guest.run().0, expected);
    }
}

#[test]
fn a_block_taken_away_under_a_program_is_caught() {
    let offset = 5 * 0x20_0000 + 0x123;
    // Reads for ever: `load` is 7 bytes, the jump back 2.
    let code = Code::default()
        .enter_ring_3(CODE_AT + WINDOW_START)
        .load(WINDOW + offset)
        .raw(&[0xEB, 0xF7]);
    for cpus in [1, 3] {
        let guest = guest(&with_window(&code), |spec| {
            with_region(spec);
            spec.cpus = NonZeroU8::new(cpus).unwrap();
        });
        let mut backend = guest.vm.handle.shared.ram.backend(0).unwrap();
        backend.plug_blocks(4, 2).unwrap();
        let handle = guest.vm.handle();
        let running = thread::spawn(move || guest.run());
        until("running", || handle.status().state == VmState::Running);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(handle.status().violations, 0);
        let _ = backend.unplug_blocks(5, 1).unwrap();
        let expected = VmExit::Violation(Violation {
            gpa: 4 * GIB + u64::from(offset),
            region: 0,
            block: 5,
        });
        assert_eq!(running.join().unwrap().0, expected);
    }
}

#[test]
fn a_violator_whose_instruction_cannot_be_emulated_is_caught_all_the_same() {
    // movntdqa xmm0, [address]: no emulator knows it.
    let offset = 7 * 0x20_0000 + 0x40;
    let code = Code::default()
        .enter_ring_3(CODE_AT + WINDOW_START)
        .raw(&[0x66, 0x0F, 0x38, 0x2A, 0x04, 0x25]);
    let code = code.raw(&(WINDOW + offset).to_le_bytes()).spin();
    let expected = VmExit::Violation(Violation {
        gpa: 4 * GIB + u64::from(offset),
        region: 0,
        block: 7,
    });
    assert_eq!(guest(&with_window(&code), with_region).run().0, expected);
}

#[test]
fn a_paused_violator_can_be_looked_at_and_stopped() {
    let code = with_window(&Code::default().load(WINDOW).power_off());
    let guest = guest(&code, |spec| {
        with_region(spec);
        spec.on_violation = OnViolation::Pause;
    });
    let handle = guest.vm.handle();
    let running = thread::spawn(move || guest.run());
    until("paused", || handle.status().state == VmState::Paused);
    assert_eq!(handle.status().violations, 1);
    let regions = handle.blocks();
    assert_eq!(
        (regions.len(), regions[0].start, regions[0].nr_blocks),
        (1, 4 * GIB, 64)
    );
    assert_eq!(regions[0].plugged_blocks(), 0);
    handle.stop();
    assert_eq!(running.join().unwrap().0, VmExit::Stopped);
}

#[test]
fn memory_below_the_region_is_no_violation() {
    // Neither RAM nor device: all ones.
    let code = Code::default().load(0xC800_0000).out(0x3F8, b'.').power_off();
    assert_eq!(
        guest(&code.0, with_region).run(),
        (VmExit::Shutdown, ".".to_owned())
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
fn a_guest_without_drivers_is_said_to_have_none() {
    let guest = guest(&Code::default().spin().0, with_region);
    let handle = guest.vm.handle();
    let running = thread::spawn(move || guest.run());
    handle
        .resize(32 * MIB + 4 * BLOCK, ResizePlace::Anywhere)
        .unwrap();
    let outcome = handle.wait_resize(Instant::now() + Duration::from_millis(50));
    let ResizeOutcome::Incomplete {
        reached_bytes,
        target_bytes,
        reason,
        guest_reason,
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!((reached_bytes, target_bytes), (32 * MIB, 32 * MIB + 4 * BLOCK));
    assert_eq!((reason, guest_reason), (IncompleteReason::DriverNotReady, None));
    let answer = handle.guest_command("meminfo", Duration::from_secs(5));
    assert_eq!(answer, Err(GuestCommandError::NotConnected));
    handle.stop();
    running.join().unwrap();
    let late = handle.resize(32 * MIB, ResizePlace::Anywhere);
    assert_eq!(late, Err(ResizeError::Ended));
}

#[test]
fn a_resize_that_nobody_follows_is_told_without_anybody_waiting() {
    let guest = guest(&Code::default().spin().0, with_region);
    let handle = guest.vm.handle();
    let running = thread::spawn(move || guest.run());
    handle
        .resize(32 * MIB + 4 * BLOCK, ResizePlace::Anywhere)
        .unwrap();
    let steps = || -> Vec<(ResizeStep, u64, u64, Option<String>)> {
        let events = handle.events().after(0);
        let step = |event: &Arc<Event>| match &event.kind {
            EventKind::Resize {
                step,
                target_bytes,
                reached_bytes,
                reason,
                ..
            } => Some((*step, *target_bytes, *reached_bytes, reason.clone())),
            _ => None,
        };
        events.iter().filter_map(step).collect()
    };
    until("a stall", || steps().len() == 2);
    let (target, reached) = (32 * MIB + 4 * BLOCK, 32 * MIB);
    let no_driver = Some("the guest has no virtio-mem driver ready".to_owned());
    let expected = [
        (ResizeStep::Requested, target, reached, None),
        (ResizeStep::Stalled, target, reached, no_driver),
    ];
    assert_eq!(steps(), expected);
    handle.resize(reached, ResizePlace::Anywhere).unwrap();
    assert_eq!(
        steps()[2..].iter().map(|step| step.0).collect::<Vec<_>>(),
        [ResizeStep::Requested, ResizeStep::Reached]
    );
    handle.stop();
    running.join().unwrap();
    assert!(handle.events().progress().borrow().ended);
}

#[test]
fn sizes_that_cannot_be_are_refused_with_the_rule() {
    let guest = guest(&Code::default().spin().0, with_region);
    let handle = guest.vm.handle();
    let refusal = |total| {
        let refused = handle.resize(total, ResizePlace::Anywhere);
        refused.unwrap_err().to_string()
    };
    assert!(refusal(16 * MIB).contains("below the boot memory of 33554432 bytes"));
    assert!(refusal(33 * MIB).contains("multiple of the block size, 2097152 bytes"));
    assert!(refusal(32 * MIB + 65 * BLOCK).contains("beyond the 167772160 bytes"));
    assert_eq!(handle.status().requested_size, 0);
}

#[test]
fn a_resize_is_split_over_the_regions_or_made_in_one() {
    let guest = guest(&Code::default().spin().0, |spec| {
        let large = HotplugSpec {
            block_size: 64 * MIB,
            backing: Backing::Memfd,
            ..HotplugSpec::of_size(256 * MIB)
        };
        spec.hotplug = vec![HotplugSpec::of_size(16 * MIB), large];
    });
    let handle = guest.vm.handle();
    let resize = |hot_plugged, place| handle.resize(32 * MIB + hot_plugged, place);
    let requested = || {
        let regions = handle.status().regions;
        regions
            .iter()
            .map(|region| region.requested_size / MIB)
            .collect::<Vec<_>>()
    };
    resize(8 * MIB, ResizePlace::Anywhere).unwrap();
    assert_eq!(requested(), [8, 0]);
    resize(72 * MIB, ResizePlace::Anywhere).unwrap();
    assert_eq!(requested(), [8, 64]);
    resize(136 * MIB, ResizePlace::Region(1)).unwrap();
    assert_eq!(requested(), [8, 128]);
    resize(128 * MIB, ResizePlace::Region(0)).unwrap();
    assert_eq!(requested(), [0, 128]);

    let refusal = |hot_plugged, place| resize(hot_plugged, place).unwrap_err().to_string();
    assert!(refusal(32 * MIB, ResizePlace::Anywhere).contains("the next size below is 50331648 bytes"));
    assert!(refusal(274 * MIB, ResizePlace::Anywhere).contains("beyond the 318767104 bytes"));
    assert!(refusal(64 * MIB, ResizePlace::Region(0)).contains("region 0 would have to have -67108864"));
    assert!(refusal(130 * MIB, ResizePlace::Region(1)).contains("in blocks of 67108864"));
    assert!(refusal(MIB, ResizePlace::Region(2)).contains("region 2: this VM has 2 regions"));
    assert_eq!(requested(), [0, 128]);
}

#[test]
fn a_block_of_every_region_and_backing_is_protected() {
    for (backing, offset) in [(Backing::Memfd, 0x123), (Backing::Anonymous, 0x20_0123)] {
        // The window is on the first region: with one region before it, its addresses begin where they always do.
        let code = with_window(&Code::default().load(WINDOW + offset).spin());
        let guest = guest(&code, |spec| {
            let region = HotplugSpec {
                backing,
                ..HotplugSpec::of_size(8 * BLOCK)
            };
            spec.hotplug = vec![region, region];
        });
        let mut backend = guest.vm.handle().shared.ram.backend(0).unwrap();
        let block = u64::from(offset) / BLOCK;
        backend.plug_blocks(block + 1, 2).unwrap();
        let expected = VmExit::Violation(Violation {
            gpa: 4 * GIB + u64::from(offset),
            region: 0,
            block,
        });
        assert_eq!(guest.run().0, expected);
    }
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
