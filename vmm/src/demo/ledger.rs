//! The account of the host's memory: no byte is granted to one guest before the host has it back from the other.
//!
//! Each guest is booked with all that it may touch (boot memory and plugged blocks), resident or not, plus the allowance
//! for its VMM. Bytes leave a guest's account only against a [`Returned`], which is made from a look at the host's own
//! page tables and not from what the device or the guest says; they enter the other's only as the [`Credit`] that this
//! gave, and only if everything together still fits the budget.

use thiserror::Error;

use super::host::Returned;
use super::plan::{Pair, Side};

/// Who holds how much. All sizes are bytes.
#[derive(Debug)]
pub struct Ledger {
    budget: u64,
    allowance: u64,
    held: Pair<u64>,
}

/// Bytes that came back to the host and may be granted once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "bytes that came back are granted to a guest, or stay free"]
pub struct Credit {
    bytes: u64,
}

impl Credit {
    fn into_bytes(self) -> u64 {
        self.bytes
    }
}

/// What the ledger refuses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// Granting this would hold more than the budget.
    #[error("{held} bytes are held and {growth} more would exceed the budget of {budget} bytes")]
    OverBudget {
        /// What is held, allowances included.
        held: u64,
        /// What should come on top.
        growth: u64,
        /// What may be held.
        budget: u64,
    },
    /// A guest gives back more than it holds.
    #[error("{side} holds {held} bytes and cannot give back {bytes}")]
    NotHeld {
        /// The guest.
        side: Side,
        /// What it holds.
        held: u64,
        /// What it should give.
        bytes: u64,
    },
}

impl Ledger {
    /// Opens the account. `held` is what each guest may touch from the start, `allowance` what each VMM may hold beyond.
    ///
    /// # Errors
    /// The start already exceeds the budget.
    pub fn open(budget: u64, allowance: u64, held: Pair<u64>) -> Result<Self, LedgerError> {
        let ledger = Self {
            budget,
            allowance,
            held: Pair::default(),
        };
        ledger.check(held.a.saturating_add(held.b))?;
        Ok(Self { held, ..ledger })
    }

    /// What is held now: both guests and both allowances.
    #[must_use]
    pub fn held_in_all(&self) -> u64 {
        self.held.a + self.held.b + 2 * self.allowance
    }

    /// What one guest may touch.
    #[must_use]
    pub fn held(&self, side: Side) -> u64 {
        self.held[side]
    }

    /// Books what the host has got back from a guest.
    ///
    /// # Errors
    /// The guest does not hold that much.
    pub fn take_back(&mut self, side: Side, returned: Returned) -> Result<Credit, LedgerError> {
        let bytes = returned.into_bytes();
        let held = self.held[side];
        self.held[side] = held
            .checked_sub(bytes)
            .ok_or(LedgerError::NotHeld { side, held, bytes })?;
        Ok(Credit { bytes })
    }

    /// Books growth of a guest, before the guest hears of it.
    ///
    /// # Errors
    /// It does not fit the budget; nothing is booked then.
    pub fn grant(&mut self, side: Side, credit: Credit) -> Result<(), LedgerError> {
        self.check(credit.bytes)?;
        self.held[side] += credit.into_bytes();
        Ok(())
    }

    fn check(&self, growth: u64) -> Result<(), LedgerError> {
        let held = self.held_in_all();
        match held.checked_add(growth) {
            Some(after) if after <= self.budget => Ok(()),
            _ => Err(LedgerError::OverBudget {
                held,
                growth,
                budget: self.budget,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: u64 = 1000;

    fn open() -> Ledger {
        Ledger::open(BUDGET, 10, Pair { a: 700, b: 280 }).expect("exactly the budget")
    }

    #[test]
    fn a_start_beyond_the_budget_is_refused() {
        assert!(Ledger::open(BUDGET, 10, Pair { a: 700, b: 281 }).is_err());
        assert!(Ledger::open(BUDGET, 10, Pair { a: u64::MAX, b: 2 }).is_err());
    }

    #[test]
    fn memory_is_granted_only_after_it_came_back() {
        let mut ledger = open();
        assert_eq!(
            ledger.grant(Side::B, Credit { bytes: 1 }),
            Err(LedgerError::OverBudget {
                held: BUDGET,
                growth: 1,
                budget: BUDGET
            })
        );
        let credit = ledger
            .take_back(Side::A, Returned::for_tests(300))
            .expect("A holds that");
        assert_eq!((ledger.held(Side::A), ledger.held_in_all()), (400, 700));
        ledger.grant(Side::B, credit).expect("it just came back");
        assert_eq!((ledger.held(Side::B), ledger.held_in_all()), (580, BUDGET));
    }

    #[test]
    fn a_guest_cannot_give_back_what_it_does_not_hold() {
        let mut ledger = open();
        assert_eq!(
            ledger.take_back(Side::B, Returned::for_tests(281)),
            Err(LedgerError::NotHeld {
                side: Side::B,
                held: 280,
                bytes: 281
            })
        );
        assert_eq!(ledger.held(Side::B), 280);
    }

    proptest! {
        /// Whatever is asked in whatever order, with credits kept, dropped, or forged: never above the budget, and a
        /// refusal changes nothing.
        #[test]
        fn the_budget_is_never_exceeded(steps in prop::collection::vec((any::<bool>(), 0_u8..3, 0_u64..1200), 0..200)) {
            let mut ledger = open();
            let mut credits: Vec<Credit> = Vec::new();
            for (a, step, bytes) in steps {
                let side = if a { Side::A } else { Side::B };
                let before = ledger.held;
                let refused = match step {
                    0 => match ledger.take_back(side, Returned::for_tests(bytes)) {
                        Ok(credit) => { credits.push(credit); false }
                        Err(_) => true,
                    },
                    1 => credits.pop().is_some_and(|credit| ledger.grant(side, credit).is_err()),
                    _ => ledger.grant(side, Credit { bytes }).is_err(),
                };
                prop_assert!(ledger.held_in_all() <= BUDGET);
                prop_assert!(!refused || ledger.held == before);
            }
        }
    }
}
