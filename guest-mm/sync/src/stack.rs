//! Numbers that a CPU keeps at hand, without a lock, and of which any CPU can take back what it needs.
//!
//! The owner takes a number by exchanging its slot with [`EMPTY`]; a thief does the same, if it still finds there what
//! it looked at. So a number has one taker, and the owner's own bookkeeping, `top` and `bottom`, is never read by
//! others. A stolen number leaves a gap over which the owner steps.

use core::fmt;

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::per_cpu::Local;

/// No number in this slot.
const EMPTY: u64 = u64::MAX;

/// Up to `N` numbers below 2^64 - 1, `N` being a power of two; the last pushed is the first popped.
///
/// Its owner reaches it as [`Local`]. The warm end is the top; `push_cold` and `pop_cold` use the other end.
pub struct CpuStack<const N: usize> {
    slots: [AtomicU64; N],
    /// Position after the topmost number. Positions count up for ever; a position's slot is its remainder by `N`.
    top: AtomicU32,
    /// Position of the lowest number.
    bottom: AtomicU32,
}

/// There is no room for this number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full(pub u64);

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no room for {} on this CPU's stack", self.0)
    }
}

impl core::error::Error for Full {}

impl<const N: usize> CpuStack<N> {
    /// What the owner has room for.
    pub const CAPACITY: u32 = {
        assert!(
            N.is_power_of_two() && N <= 1 << 16,
            "slots are found by their lowest bits"
        );
        #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
        {
            N as u32
        }
    };

    /// An empty stack.
    pub fn new() -> Self {
        Self {
            slots: core::array::from_fn(|_| AtomicU64::new(EMPTY)),
            top: AtomicU32::new(0),
            bottom: AtomicU32::new(0),
        }
    }

    /// Takes every number that is `wanted`, and calls `taken` with it. For any CPU.
    ///
    /// A number that its owner pushes or pops meanwhile may be missed. One that was pushed before, and is not popped,
    /// is not.
    pub fn steal(&self, mut wanted: impl FnMut(u64) -> bool, mut taken: impl FnMut(u64)) {
        for slot in &self.slots {
            let number = slot.load(Ordering::Acquire);
            if number != EMPTY
                && wanted(number)
                && slot
                    .compare_exchange(number, EMPTY, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            {
                taken(number);
            }
        }
    }

    /// Calls `seen` with every number. Exact only while the owner does nothing. For any CPU.
    pub fn look(&self, mut seen: impl FnMut(u64)) {
        for slot in &self.slots {
            let number = slot.load(Ordering::Acquire);
            if number != EMPTY {
                seen(number);
            }
        }
    }

    #[inline]
    fn slot(&self, position: u32) -> &AtomicU64 {
        &self.slots[position as usize & (N - 1)]
    }

    /// Takes what is at a position, unless it was stolen.
    #[inline]
    fn take(&self, position: u32) -> Option<u64> {
        // Sequentially consistent: what the owner reads after this, it reads after any thief who came too late.
        let number = self.slot(position).swap(EMPTY, Ordering::SeqCst);
        (number != EMPTY).then_some(number)
    }
}

impl<const N: usize> Local<'_, CpuStack<N>> {
    /// Numbers here, or a few more if some were stolen.
    #[inline]
    pub fn len(&self) -> u32 {
        let (top, bottom) = self.ends();
        top.wrapping_sub(bottom)
    }

    /// Whether there is nothing to pop. (If not, there may still be nothing: it may have been stolen.)
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a number on top.
    ///
    /// # Errors
    /// [`Full`], with the number, when there is no room.
    ///
    /// # Panics
    /// If `number` is 2^64 - 1.
    #[inline]
    pub fn push(&self, number: u64) -> Result<(), Full> {
        self.push_below(CpuStack::<N>::CAPACITY, number)
    }

    /// As [`push`](Self::push), if there are fewer than `limit` numbers here.
    ///
    /// # Errors
    /// [`Full`], with the number, when there are as many or there is no room.
    ///
    /// # Panics
    /// If `number` is 2^64 - 1.
    #[inline]
    pub fn push_below(&self, limit: u32, number: u64) -> Result<(), Full> {
        assert!(number != EMPTY, "2^64 - 1 stands for an empty slot");
        let (top, bottom) = self.ends();
        if top.wrapping_sub(bottom) >= limit.min(CpuStack::<N>::CAPACITY) {
            return Err(Full(number));
        }
        // Release: a thief sees what the owner wrote about the number before. The slot is empty: a position leaves
        // the stack only by being taken.
        self.slot(top).store(number, Ordering::Release);
        self.top.store(top.wrapping_add(1), Ordering::Relaxed);
        Ok(())
    }

    /// Puts a number at the bottom.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    ///
    /// # Panics
    /// If `number` is 2^64 - 1.
    #[inline]
    pub fn push_cold(&self, number: u64) -> Result<(), Full> {
        assert!(number != EMPTY, "2^64 - 1 stands for an empty slot");
        let (top, bottom) = self.ends();
        if top.wrapping_sub(bottom) == CpuStack::<N>::CAPACITY {
            return Err(Full(number));
        }
        let position = bottom.wrapping_sub(1);
        self.slot(position).store(number, Ordering::Release);
        self.bottom.store(position, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the topmost number: the last that was pushed.
    #[inline]
    pub fn pop(&self) -> Option<u64> {
        let (mut top, bottom) = self.ends();
        while top != bottom {
            top = top.wrapping_sub(1);
            let number = self.take(top);
            self.top.store(top, Ordering::Relaxed);
            if number.is_some() {
                return number;
            }
        }
        None
    }

    /// Takes the lowest number: the one that has been here longest.
    #[inline]
    pub fn pop_cold(&self) -> Option<u64> {
        let (top, mut bottom) = self.ends();
        while top != bottom {
            let number = self.take(bottom);
            bottom = bottom.wrapping_add(1);
            self.bottom.store(bottom, Ordering::Relaxed);
            if number.is_some() {
                return number;
            }
        }
        None
    }

    /// Takes up to `wanted` numbers, lowest first, and calls `taken` with each; returns how many there were. Without an
    /// atomic exchange for each: the caller keeps thieves out, by a lock that everybody who steals from this stack holds.
    #[inline]
    pub fn pop_cold_many(&self, wanted: u32, mut taken: impl FnMut(u64)) -> u32 {
        let (top, mut bottom) = self.ends();
        let mut nr_taken = 0;
        while top != bottom && nr_taken < wanted {
            let slot = self.slot(bottom);
            let number = slot.load(Ordering::Relaxed);
            if number != EMPTY {
                slot.store(EMPTY, Ordering::Relaxed);
                taken(number);
                nr_taken += 1;
            }
            bottom = bottom.wrapping_add(1);
        }
        self.bottom.store(bottom, Ordering::Relaxed);
        nr_taken
    }

    /// `top` and `bottom`: only the owner reads and writes them.
    #[inline]
    fn ends(&self) -> (u32, u32) {
        (
            self.top.load(Ordering::Relaxed),
            self.bottom.load(Ordering::Relaxed),
        )
    }
}

impl<const N: usize> Default for CpuStack<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for CpuStack<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        self.look(|number| {
            list.entry(&number);
        });
        list.finish()
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::{CpuId, CpuSet, PerCpu};
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::vec;
    use std::vec::Vec;

    fn with_stack<const N: usize>(test: impl FnOnce(Local<'_, CpuStack<N>>, &CpuStack<N>)) {
        let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
        let stacks = PerCpu::new(1, |_| CpuStack::<N>::new());
        test(stacks.this(&cpu), stacks.of(CpuId::ZERO).unwrap());
    }

    #[test]
    fn the_warm_end_is_last_in_first_out_and_the_cold_end_the_other_way_round() {
        with_stack::<4>(|own, _| {
            own.push(1).unwrap();
            own.push(2).unwrap();
            own.push_cold(0).unwrap();
            assert_eq!(
                (own.pop(), own.pop_cold(), own.pop(), own.pop()),
                (Some(2), Some(0), Some(1), None)
            );
        });
    }

    #[test]
    fn a_full_stack_gives_the_number_back() {
        with_stack::<2>(|own, _| {
            own.push(1).unwrap();
            own.push_cold(2).unwrap();
            assert_eq!((own.push(3), own.push_cold(4)), (Err(Full(3)), Err(Full(4))));
            assert_eq!(own.len(), 2);
        });
    }

    #[test]
    fn a_thief_takes_what_it_wants_and_the_owner_steps_over_the_gaps() {
        with_stack::<8>(|own, others| {
            (0..6).for_each(|number| own.push(number).unwrap());
            let mut stolen = Vec::new();
            others.steal(|number| number % 2 == 1, |number| stolen.push(number));
            assert_eq!(stolen, [1, 3, 5]);
            assert_eq!(
                (own.pop(), own.pop_cold(), own.pop(), own.pop()),
                (Some(4), Some(0), Some(2), None)
            );
            assert!(own.is_empty());
        });
    }

    #[test]
    fn a_stack_takes_no_more_than_it_may_or_has_room_for() {
        with_stack::<4>(|own, _| {
            own.push_below(2, 1).unwrap();
            own.push_below(2, 2).unwrap();
            assert_eq!(own.push_below(2, 3), Err(Full(3)));
            own.push_below(9, 3).unwrap();
            own.push_below(9, 4).unwrap();
            assert_eq!(own.push_below(9, 5), Err(Full(5)));
        });
    }

    #[test]
    fn the_coldest_numbers_go_together_and_gaps_do_not_count() {
        with_stack::<8>(|own, others| {
            (0..6).for_each(|number| own.push(number).unwrap());
            others.steal(|number| number == 1, |_| {});
            let mut taken = Vec::new();
            assert_eq!(own.pop_cold_many(3, |number| taken.push(number)), 3);
            assert_eq!((taken, own.len()), (vec![0, 2, 3], 2));
            assert_eq!(own.pop_cold_many(3, |_| {}), 2);
            assert!(own.is_empty());
        });
    }

    #[test]
    fn positions_wrap_around_in_both_directions() {
        with_stack::<2>(|own, _| {
            for round in 0..10 {
                own.push_cold(round).unwrap();
                assert_eq!(own.pop_cold(), Some(round));
                own.push(round).unwrap();
                own.push(round + 1).unwrap();
                assert_eq!((own.pop_cold(), own.pop_cold()), (Some(round), Some(round + 1)));
            }
        });
    }

    #[test]
    fn owner_and_thief_together_get_every_number_once() {
        const ROUNDS: u64 = 20_000;
        let cpu = CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap();
        let stacks = PerCpu::new(1, |_| CpuStack::<16>::new());
        let over = AtomicBool::new(false);
        let (mut mine, mut stolen) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            let (stacks, over) = (&stacks, &over);
            let thief = scope.spawn(move || {
                let mut stolen = Vec::new();
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let stack = stacks.of(CpuId::ZERO).unwrap();
                    stack.steal(|number| number % 3 == 0, |number| stolen.push(number));
                }
                stolen
            });
            for number in 0..ROUNDS {
                if let Err(Full(number)) = stacks.this(&cpu).push(number) {
                    mine.push(number);
                }
                if number % 5 == 0 {
                    mine.extend(stacks.this(&cpu).pop());
                    mine.extend(stacks.this(&cpu).pop_cold());
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            stolen = thief.join().unwrap();
        });
        mine.extend(core::iter::from_fn(|| stacks.this(&cpu).pop()));
        mine.append(&mut stolen);
        mine.sort_unstable();
        assert!(
            mine.iter().copied().eq(0..ROUNDS),
            "{} of {ROUNDS} numbers",
            mine.len()
        );
    }
}
