//! The life of a VM: starting, running, held, rebooting, ending. The first reason to end wins; everybody else learns of it
//! here.
//!
//! vCPU threads pass [`Lifecycle::gate`] before every entry into the guest, which costs them one atomic load while
//! nothing is the matter. The thread in `Vm::run` waits in [`Lifecycle::next_turn`] and kicks the vCPUs towards the
//! gate when something is. For a reboot all vCPU threads leave, and new ones come with the next boot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{VmError, VmExit};
use crate::cli::chain;
use crate::control::report::VmState;
use crate::journal::{EventKind, Events};

/// What a VM is doing, and how it ended. Lock order: nothing but the events is locked while the state is.
#[derive(Debug)]
pub(super) struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
    /// Set when vCPUs must stop at the gate.
    attention: AtomicBool,
    /// Written when the VM ends: wakes the event loop.
    ended: EventFd,
    /// Told of every change.
    events: Events,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    end: Option<Result<VmExit, VmError>>,
    /// All vCPUs stay at the gate until somebody lets them go.
    held: bool,
    reboot: Reboot,
    /// Somebody must kick the vCPUs towards the gate.
    kick: bool,
    /// vCPU threads that have started and not left.
    vcpus: usize,
    /// Of those, the ones that wait at the gate.
    at_gate: usize,
    /// One vCPU has the machine for itself.
    alone: bool,
    /// How often the guest has been held.
    holds: u64,
}

/// From the first boot to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Exiting,
}

/// How far a reboot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reboot {
    No,
    /// Asked for; the thread that runs the VM has not heard of it.
    Wanted,
    /// The vCPU threads leave; then the machine is reset and booted.
    UnderWay,
}

impl State {
    fn phase(&self) -> VmState {
        match (self.stage, self.reboot, self.held) {
            (Stage::Exiting, ..) => VmState::Exiting,
            (_, Reboot::UnderWay, _) | (_, Reboot::Wanted, false) => VmState::Rebooting,
            (_, _, true) => VmState::Paused,
            (Stage::Starting, ..) => VmState::Starting,
            (Stage::Running, ..) => VmState::Running,
        }
    }

    /// Whether vCPU threads must go for good.
    fn is_over(&self) -> bool {
        self.stage == Stage::Exiting || self.reboot == Reboot::UnderWay
    }

    /// Whether vCPUs have anything to look at in the gate.
    fn needs_attention(&self) -> bool {
        self.is_over() || self.held || self.alone || self.reboot == Reboot::Wanted
    }
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
    /// It may again, after the guest was held for a while.
    EnterAfterHold,
    /// The VM ends or reboots: its thread must return.
    Leave,
}

/// What the thread that runs the VM has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Get the vCPUs out of the guest: they are to be held.
    Hold,
    /// Get rid of the vCPUs, reset the machine, and boot it again.
    Reboot,
    /// Take the VM down.
    TakeDown,
}

impl Lifecycle {
    /// A VM that is starting. `ended` is signalled once, when it ends.
    pub(super) fn new(ended: EventFd, events: Events) -> Self {
        let state = State {
            stage: Stage::Starting,
            end: None,
            held: false,
            reboot: Reboot::No,
            kick: false,
            vcpus: 0,
            at_gate: 0,
            alone: false,
            holds: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            ended,
            events,
        }
    }

    /// What the VM is doing.
    pub(super) fn phase(&self) -> VmState {
        self.lock().phase()
    }

    /// Whether it has ended or is ending.
    pub(super) fn is_ending(&self) -> bool {
        self.lock().stage == Stage::Exiting
    }

    /// The vCPUs begin to run, for the first time or after a reboot.
    pub(super) fn start(&self) {
        self.change(|state| {
            state.stage = Stage::Running;
            state.reboot = Reboot::No;
        });
    }

    /// Holds all vCPUs at the gate. Returns whether that is new.
    pub(super) fn pause(&self) -> bool {
        self.change(|state| {
            let is_new = !state.held;
            state.held = true;
            state.holds += u64::from(is_new);
            is_new
        })
        .unwrap_or(false)
    }

    /// Lets held vCPUs go. Returns whether they were held.
    pub(super) fn resume(&self) -> bool {
        self.change(|state| std::mem::take(&mut state.held))
            .unwrap_or(false)
    }

    /// Reboots the guest, unless the VM ends; a guest that is held reboots when it is let go. Returns whether that is new.
    pub(super) fn reboot(&self) -> bool {
        self.change(|state| {
            let is_new = state.reboot == Reboot::No;
            if is_new {
                state.reboot = Reboot::Wanted;
            }
            is_new
        })
        .unwrap_or(false)
    }

    /// Ends the VM; the first reason given is the one that counts.
    pub(super) fn end(&self, reason: Result<VmExit, VmError>) {
        self.change(|state| {
            state.stage = Stage::Exiting;
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
        let holds_before = state.holds - u64::from(state.held);
        self.changed.notify_all();
        while !state.is_over() && state.needs_attention() {
            state = self.wait(state);
        }
        state.at_gate -= 1;
        if state.is_over() {
            state.vcpus -= 1;
            self.changed.notify_all();
            Gate::Leave
        } else if state.holds > holds_before {
            Gate::EnterAfterHold
        } else {
            Gate::Enter
        }
    }

    /// Waits until all vCPU threads have left for a reboot. `false` if the VM ends first.
    pub(super) fn wait_until_left(&self) -> bool {
        let mut state = self.lock();
        while state.vcpus > 0 && state.stage != Stage::Exiting {
            state = self.wait(state);
        }
        state.stage != Stage::Exiting
    }

    /// For a vCPU thread: waits until all others are at the gate, and keeps them there. `None` if another one was
    /// faster, or the VM is held, reboots or ends: then it belongs at the gate itself.
    pub(super) fn alone(&self) -> Option<Alone<'_>> {
        let mut state = self.lock();
        if state.alone || state.phase() != VmState::Running {
            return None;
        }
        state.alone = true;
        state.kick = true;
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        // From here on, dropping it lets the others go.
        let alone = Alone(self);
        while state.at_gate + 1 < state.vcpus && state.phase() == VmState::Running {
            state = self.wait(state);
        }
        let running = state.phase() == VmState::Running;
        drop(state);
        running.then_some(alone)
    }

    /// For the thread that runs the VM: waits for something to do.
    pub(super) fn next_turn(&self) -> Turn {
        let mut state = self.lock();
        loop {
            if state.stage == Stage::Exiting {
                return Turn::TakeDown;
            }
            if std::mem::take(&mut state.kick) {
                return Turn::Hold;
            }
            if state.reboot == Reboot::Wanted && !state.held {
                state.reboot = Reboot::UnderWay;
                self.changed.notify_all();
                return Turn::Reboot;
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
                self.wait(state)
            };
        }
    }

    /// How the VM ended. To be called once, after [`Turn::TakeDown`].
    pub(super) fn take_end(&self) -> Result<VmExit, VmError> {
        // The phase stays `Exiting`, so that whoever asks later still learns of the end.
        self.lock().end.take().unwrap_or(Ok(VmExit::Stopped))
    }

    /// Changes the state of a VM that does not end; `None` of one that does.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.lock();
        if state.stage == Stage::Exiting {
            return None;
        }
        let before = state.phase();
        let result = change(&mut state);
        if state.phase() != before {
            self.events.emit(EventKind::State {
                state: state.phase(),
                reason: state.end.as_ref().map(|end| match end {
                    Ok(exit) => exit.to_string(),
                    Err(error) => chain(error),
                }),
            });
        }
        let attention = state.needs_attention();
        state.kick = attention;
        self.attention.store(attention, Ordering::Release);
        self.changed.notify_all();
        Some(result)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.alone = false;
        self.0.attention.store(state.needs_attention(), Ordering::Release);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
