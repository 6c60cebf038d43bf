//! The stages of a life, with threads that stand for vCPUs.

use super::*;
use std::sync::Arc;

fn lifecycle() -> Lifecycle {
    let lifecycle = Lifecycle::new(
        EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        Events::new(std::time::Instant::now()),
    );
    lifecycle.start();
    lifecycle
}

#[test]
fn the_first_reason_to_end_wins() {
    let lifecycle = lifecycle();
    lifecycle.vcpu_arrives();
    assert_eq!(lifecycle.gate(), Gate::Enter);
    lifecycle.end(Ok(VmExit::Shutdown));
    lifecycle.end(Ok(VmExit::Stopped));
    lifecycle.pause();
    assert_eq!(lifecycle.next_turn(), Turn::TakeDown);
    assert_eq!(lifecycle.gate(), Gate::Leave);
    assert_eq!(lifecycle.take_end().unwrap(), VmExit::Shutdown);
    assert!(lifecycle.is_ending());
}

#[test]
fn a_held_vcpu_leaves_when_the_vm_ends() {
    let lifecycle = Arc::new(lifecycle());
    lifecycle.vcpu_arrives();
    lifecycle.pause();
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    let theirs = Arc::clone(&lifecycle);
    let vcpu = std::thread::spawn(move || theirs.gate());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!vcpu.is_finished());
    lifecycle.end(Ok(VmExit::Stopped));
    assert_eq!(vcpu.join().unwrap(), Gate::Leave);
}

#[test]
fn one_vcpu_is_alone_only_when_all_others_are_at_the_gate() {
    let lifecycle = Arc::new(lifecycle());
    lifecycle.vcpu_arrives();
    lifecycle.vcpu_arrives();
    let theirs = Arc::clone(&lifecycle);
    let first = std::thread::spawn(move || {
        theirs
            .alone()
            .map(|alone| (theirs.alone().is_none(), drop(alone)).0)
    });
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!first.is_finished(), "the other one is not at the gate yet");
    // Let through again as soon as the first has had its time.
    assert_eq!(lifecycle.gate(), Gate::Enter);
    assert_eq!(first.join().unwrap(), Some(true));
    assert_eq!(lifecycle.gate(), Gate::Enter);
}

#[test]
fn a_vcpu_that_is_alone_for_long_is_kicked_itself() {
    let lifecycle = lifecycle();
    lifecycle.vcpu_arrives();
    let alone = lifecycle.alone();
    assert!(alone.is_some());
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    assert_eq!(lifecycle.next_turn(), Turn::Hold, "after a while");
}

#[test]
fn waiting_to_be_alone_ends_with_the_vm() {
    let lifecycle = Arc::new(lifecycle());
    lifecycle.vcpu_arrives();
    lifecycle.vcpu_arrives();
    let theirs = Arc::clone(&lifecycle);
    let waiting = std::thread::spawn(move || theirs.alone().is_none());
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    lifecycle.end(Ok(VmExit::Stopped));
    assert!(waiting.join().unwrap());
}

#[test]
fn a_held_vcpu_goes_on_when_it_is_let_go_and_knows_that_time_has_passed() {
    let lifecycle = Arc::new(lifecycle());
    lifecycle.vcpu_arrives();
    assert!(lifecycle.pause());
    assert!(!lifecycle.pause(), "it is held already");
    assert_eq!(lifecycle.phase(), VmState::Paused);
    let theirs = Arc::clone(&lifecycle);
    let vcpu = std::thread::spawn(move || theirs.gate());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!vcpu.is_finished());
    assert!(lifecycle.resume());
    assert_eq!(vcpu.join().unwrap(), Gate::EnterAfterHold);
    assert_eq!(lifecycle.phase(), VmState::Running);
    assert!(!lifecycle.resume(), "it runs");
    assert_eq!(lifecycle.gate(), Gate::Enter);
}

#[test]
fn all_vcpus_leave_for_a_reboot_and_new_ones_run_after_it() {
    let lifecycle = Arc::new(lifecycle());
    for _ in 0..2 {
        lifecycle.vcpu_arrives();
    }
    assert!(lifecycle.reboot());
    assert!(!lifecycle.reboot(), "one reboot at a time");
    let vcpus = [(); 2].map(|()| {
        let theirs = Arc::clone(&lifecycle);
        std::thread::spawn(move || theirs.gate())
    });
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    assert_eq!(lifecycle.next_turn(), Turn::Reboot);
    assert_eq!(lifecycle.phase(), VmState::Rebooting);
    assert!(lifecycle.wait_until_left());
    for vcpu in vcpus {
        assert_eq!(vcpu.join().unwrap(), Gate::Leave);
    }
    lifecycle.start();
    assert_eq!(lifecycle.phase(), VmState::Running);
    lifecycle.vcpu_arrives();
    assert_eq!(lifecycle.gate(), Gate::Enter);
}

#[test]
fn a_held_guest_reboots_when_it_is_let_go() {
    let lifecycle = lifecycle();
    lifecycle.vcpu_arrives();
    lifecycle.pause();
    lifecycle.reboot();
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    assert_eq!(lifecycle.phase(), VmState::Paused);
    lifecycle.resume();
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    assert_eq!(lifecycle.next_turn(), Turn::Reboot);
}

#[test]
fn a_vm_that_ends_does_not_reboot() {
    let lifecycle = lifecycle();
    lifecycle.vcpu_arrives();
    lifecycle.reboot();
    assert_eq!(lifecycle.next_turn(), Turn::Hold);
    assert_eq!(lifecycle.next_turn(), Turn::Reboot);
    lifecycle.end(Ok(VmExit::Stopped));
    assert!(!lifecycle.wait_until_left());
    lifecycle.start();
    assert_eq!(lifecycle.next_turn(), Turn::TakeDown);
}

#[test]
fn every_change_is_told_once_and_the_end_with_its_reason() {
    let lifecycle = lifecycle();
    lifecycle.pause();
    lifecycle.pause();
    lifecycle.resume();
    lifecycle.reboot();
    lifecycle.start();
    lifecycle.end(Ok(VmExit::Shutdown));
    lifecycle.end(Ok(VmExit::Stopped));
    let told: Vec<_> = lifecycle
        .events
        .after(0)
        .iter()
        .map(|event| match &event.kind {
            EventKind::State { state, reason } => (*state, reason.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (VmState::Running, None),
        (VmState::Paused, None),
        (VmState::Running, None),
        (VmState::Rebooting, None),
        (VmState::Running, None),
        (VmState::Exiting, Some("the guest powered off".to_owned())),
    ];
    assert_eq!(told, expected);
}
