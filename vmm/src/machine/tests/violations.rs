//! Accesses to unplugged blocks: caught, with the right address, by every kind of access.

use super::*;

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
