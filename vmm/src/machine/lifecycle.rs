//! The life of a VM: starting, running, held, ending. The first reason to end wins; everybody else learns of it here.
//!
//! vCPU threads pass [`Lifecycle::gate`] before every entry into the guest, which costs them one atomic load while
//! nothing is the matter. The thread in `Vm::run` waits in [`Lifecycle::next_turn`] and kicks the vCPUs towards the
//! gate when something is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{VmError, VmExit};
use crate::control::report::VmState;

/// What a VM is doing, and how it ended. Lock order: nothing else is locked while the state is.
#[derive(Debug)]
pub(super) struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
    /// Set when vCPUs must stop at the gate.
    attention: AtomicBool,
    /// Written when the VM ends: wakes the event loop.
    ended: EventFd,
}

#[derive(Debug)]
struct State {
    phase: VmState,
    end: Option<Result<VmExit, VmError>>,
    /// Somebody must kick the vCPUs towards the gate.
    kick: bool,
    /// vCPU threads that have started and not left.
    vcpus: usize,
    /// Of those, the ones that wait at the gate.
    at_gate: usize,
    /// One vCPU has the machine for itself.
    alone: bool,
}

/// While this lives, its vCPU thread is the only one that may enter the guest.
#[derive(Debug)]
pub(super) struct Alone<'a>(&'a Lifecycle);

/// How long one vCPU may keep the others out before it is kicked itself.
const ALONE_AT_MOST: Duration = Duration::from_millis(100);

/// Whether a vCPU may enter the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// It may.
    Enter,
    /// The VM ends: its thread must return.
    Leave,
}

/// What the thread that runs the VM has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Get the vCPUs out of the guest: they are to be held.
    Hold,
    /// Take the VM down.
    TakeDown,
}

impl Lifecycle {
    /// A VM that is starting. `ended` is signalled once, when it ends.
    pub(super) fn new(ended: EventFd) -> Self {
        let state = State {
            phase: VmState::Starting,
            end: None,
            kick: false,
            vcpus: 0,
            at_gate: 0,
            alone: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            ended,
        }
    }

    /// What the VM is doing.
    pub(super) fn phase(&self) -> VmState {
        self.lock().phase
    }

    /// Whether it has ended or is ending.
    pub(super) fn is_ending(&self) -> bool {
        self.phase() == VmState::Exiting
    }

    /// The vCPUs begin to run.
    pub(super) fn start(&self) {
        let mut state = self.lock();
        if state.phase == VmState::Starting {
            state.phase = VmState::Running;
        }
    }

    /// Holds all vCPUs at the gate.
    pub(super) fn pause(&self) {
        self.change(|state| state.phase = VmState::Paused);
    }

    /// Ends the VM; the first reason given is the one that counts.
    pub(super) fn end(&self, reason: Result<VmExit, VmError>) {
        self.change(|state| {
            state.phase = VmState::Exiting;
            state.end = Some(reason);
        });
        // A full counter is a signalled one.
        let _ = self.ended.write(1);
    }

    /// For a vCPU thread when it begins.
    pub(super) fn vcpu_arrives(&self) {
        self.lock().vcpus += 1;
    }

    /// For a vCPU thread before it enters the guest: waits while the VM is held, or another vCPU is alone.
    pub(super) fn gate(&self) -> Gate {
        if !self.attention.load(Ordering::Acquire) {
            return Gate::Enter;
        }
        let mut state = self.lock();
        state.at_gate += 1;
        self.changed.notify_all();
        while state.phase == VmState::Paused || (state.alone && state.phase != VmState::Exiting) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.at_gate -= 1;
        if state.phase == VmState::Exiting {
            state.vcpus -= 1;
            self.changed.notify_all();
            Gate::Leave
        } else {
            Gate::Enter
        }
    }

    /// For a vCPU thread: waits until all others are at the gate, and keeps them there. `None` if another one was
    /// faster, or the VM is held or ends: then it belongs at the gate itself.
    pub(super) fn alone(&self) -> Option<Alone<'_>> {
        let mut state = self.lock();
        if state.alone || state.phase != VmState::Running {
            return None;
        }
        state.alone = true;
        state.kick = true;
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        // From here on, dropping it lets the others go.
        let alone = Alone(self);
        while state.at_gate + 1 < state.vcpus && state.phase == VmState::Running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let running = state.phase == VmState::Running;
        drop(state);
        running.then_some(alone)
    }

    /// For the thread that runs the VM: waits for something to do.
    pub(super) fn next_turn(&self) -> Turn {
        let mut state = self.lock();
        loop {
            if state.phase == VmState::Exiting {
                return Turn::TakeDown;
            }
            if std::mem::take(&mut state.kick) {
                return Turn::Hold;
            }
            state = if state.alone {
                let (state, wait) = self
                    .changed
                    .wait_timeout(state, ALONE_AT_MOST)
                    .unwrap_or_else(PoisonError::into_inner);
                if wait.timed_out() && state.alone {
                    return Turn::Hold;
                }
                state
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    /// How the VM ended. To be called once, after [`Turn::TakeDown`].
    pub(super) fn take_end(&self) -> Result<VmExit, VmError> {
        // The phase stays `Exiting`, so that whoever asks later still learns of the end.
        self.lock().end.take().unwrap_or(Ok(VmExit::Stopped))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        if state.phase != VmState::Exiting {
            change(&mut state);
            state.kick = true;
            self.attention.store(true, Ordering::Release);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.alone = false;
        self.0
            .attention
            .store(state.phase != VmState::Running, Ordering::Release);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn lifecycle() -> Lifecycle {
        let lifecycle = Lifecycle::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
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
}
