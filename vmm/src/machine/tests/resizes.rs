//! Sizes: what is refused, how a size is split over the regions, and what is said of a guest that does not follow.

use super::*;

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
