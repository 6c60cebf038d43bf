//! The memory that a driver shares with its device, on its way elsewhere: who wants that asks, from any CPU, and the driver's task does it when
//! nothing is under way.

use crate::sync::Signal;
use core::fmt;
use guest_sync::SpinLock;

/// The driver has the memory that it had: there is no other, or the device does not start any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMoved;

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its driver found no other memory, or the device did not start again")
    }
}

impl core::error::Error for NotMoved {}

/// Wishes, and what became of them.
#[derive(Default, Debug)]
pub struct Relocation {
    state: SpinLock<State>,
    asked: Signal,
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

impl Default for State {
    fn default() -> Self {
        Self {
            wanted: 0,
            done: 0,
            result: Ok(()),
        }
    }
}

impl Relocation {
    /// Has the driver's memory move, as soon as nothing is under way that would be lost, and waits for that; what is asked of the device meanwhile
    /// waits too.
    ///
    /// # Errors
    /// It has the memory that it had.
    pub async fn request(&self) -> Result<(), NotMoved> {
        let number = {
            let mut state = self.state.lock();
            state.wanted += 1;
            state.wanted
        };
        self.asked.raise();
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

    /// How often it was wanted: for the driver's task, which looks at this, then whether it [is wanted](Self::is_wanted), then waits for
    /// [`Self::asked_after`].
    pub fn asked(&self) -> u64 {
        self.asked.count()
    }

    /// Waits until it was wanted more than `seen` times.
    pub async fn asked_after(&self, seen: u64) {
        self.asked.after(seen).await;
    }

    /// Whether the driver's memory is to move: nothing new is begun then.
    pub fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.wanted > state.done
    }

    /// What came of it, for all who have wanted it so far.
    pub fn end(&self, result: Result<(), NotMoved>) {
        {
            let mut state = self.state.lock();
            (state.done, state.result) = (state.wanted, result);
        }
        self.ended.raise();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::alone;
    use alloc::boxed::Box;
    use alloc::rc::Rc;
    use core::cell::Cell;

    #[test]
    fn all_who_want_a_drivers_memory_elsewhere_hear_what_came_of_it() {
        type Outcome = Option<Result<(), NotMoved>>;
        let relocation: &'static Relocation = Box::leak(Box::default());
        let executor = alone();
        let outcomes: Rc<[Cell<Outcome>; 2]> = Rc::default();
        let now = || outcomes.each_ref().map(Cell::get);
        for result in [Err(NotMoved), Ok(())] {
            outcomes.iter().for_each(|outcome| outcome.set(None));
            let asked = relocation.asked();
            for who in 0..2 {
                let outcomes = outcomes.clone();
                let wish = async move {
                    outcomes[who].set(Some(relocation.request().await));
                };
                executor.spawn(wish).unwrap();
            }
            executor.run_ready();
            assert!(
                relocation.is_wanted() && relocation.asked() > asked,
                "its task is woken for it"
            );
            assert_eq!(now(), [None; 2]);
            relocation.end(result);
            executor.run_ready();
            assert_eq!(now(), [Some(result); 2]);
            assert!(!relocation.is_wanted());
        }
    }
}
