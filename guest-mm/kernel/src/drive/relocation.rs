//! The memory that a driver shares with its disk, on its way elsewhere: who wants that asks, and the disk's task does it when nothing is under way.

use crate::sync::Signal;
use core::fmt;
use guest_sync::SpinLock;

/// The driver has the memory that it had: there is no other, or the disk does not start any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMoved;

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its driver found no other memory, or the disk did not start again")
    }
}

impl core::error::Error for NotMoved {}

/// Wishes, and what became of them.
#[derive(Debug)]
pub(super) struct Relocation {
    state: SpinLock<State>,
    ended: Signal,
}

#[derive(Debug)]
struct State {
    /// How often it was wanted.
    wanted: u64,
    /// The last of these that was looked after, with all before it.
    done: u64,
    result: Result<(), NotMoved>,
}

impl Relocation {
    pub(super) const fn new() -> Self {
        Self {
            state: SpinLock::new(State {
                wanted: 0,
                done: 0,
                result: Ok(()),
            }),
            ended: Signal::new(),
        }
    }

    /// Another wish; its number.
    pub(super) fn ask(&self) -> u64 {
        let mut state = self.state.lock();
        state.wanted += 1;
        state.wanted
    }

    /// Waits for what comes of a wish.
    pub(super) async fn outcome(&self, number: u64) -> Result<(), NotMoved> {
        loop {
            let seen = self.ended.count();
            {
                let state = self.state.lock();
                if state.done >= number {
                    return state.result;
                }
            }
            self.ended.after(seen).await;
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.wanted > state.done
    }

    pub(super) fn end(&self, result: Result<(), NotMoved>) {
        {
            let mut state = self.state.lock();
            (state.done, state.result) = (state.wanted, result);
        }
        self.ended.raise();
    }
}
