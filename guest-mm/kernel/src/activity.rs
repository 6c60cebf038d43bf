//! What each CPU is doing, as the others see it, and how they get its attention: to look at its tasks, to leave an
//! address space, to forget translations of the manager's own, or to stand still.
//!
//! The manager runs with interrupts off, so a CPU in it cannot be called, and need not be: before it leaves for a process
//! or sleep it says so, and then looks once more at what others may have left for it. Whoever leaves something looks after
//! that at what the CPU has said. One of the two sees the other, as between both steps on either side is a full fence;
//! marked below with *fence*.
//!
//! The machine itself is behind [`Hardware`]; the tests put threads in its place.

#[cfg(test)]
mod tests;

use crate::cmdline::MAX_CPUS;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use guest_sync::CpuId;

/// In the manager, or called out of what it did and on its way there.
const MANAGER: u8 = 0;
/// In a process, or asleep.
const AWAY: u8 = 1;

/// What a CPU does to itself and to others.
pub trait Hardware {
    /// Interrupts another CPU, which is, or soon will be, in a process or asleep.
    fn call(&self, cpu: CpuId);
    /// Forgets all translations that this CPU has cached.
    fn forget(&self);
    /// Is called again and again while this CPU waits for another one.
    fn relax(&self);
}

/// The CPUs of a machine. Methods with a CPU called `this` are for that CPU alone.
pub struct Activity {
    states: [State; MAX_CPUS.get() as usize],
    /// Counts changes of the manager's page tables that take something away.
    generation: AtomicU64,
    /// The CPU for which all others stand still, plus 1; 0 if there is none.
    still_for: AtomicU8,
}

/// One CPU.
#[repr(align(128))]
struct State {
    /// Whether the CPU is in use.
    is_up: AtomicBool,
    /// [`MANAGER`] or [`AWAY`].
    place: AtomicU8,
    /// Root table of the address space that it runs in, or is about to; 0 in between.
    root: AtomicU64,
    /// The last value of [`Activity::generation`] that it has forgotten all translations for.
    forgotten: AtomicU64,
    /// It stands still.
    is_still: AtomicBool,
    counters: Counters,
}

/// What a CPU has done so far. Written by itself alone.
#[derive(Default)]
pub struct Counters {
    /// Times it went into a process. Also tells its stays in an address space apart.
    pub runs: AtomicU64,
    /// Interrupts that came in, calls by other CPUs among them.
    pub interrupts: AtomicU64,
    /// Calls by other CPUs that came in.
    pub calls: AtomicU64,
    /// Calls it has sent to other CPUs so that they leave an address space.
    pub leave_calls: AtomicU64,
    /// Calls it has sent to other CPUs so that they forget translations of the manager's own.
    pub forget_calls: AtomicU64,
    /// Nanoseconds it has slept, but for the sleep it is in.
    pub slept_ns: AtomicU64,
    /// When it fell asleep; 0 while it is awake.
    pub asleep_since: AtomicU64,
}

impl Counters {
    /// Nanoseconds it has slept, as of `now`.
    pub fn idle_ns(&self, now: u64) -> u64 {
        let since = self.asleep_since.load(Ordering::Acquire);
        let sleeps = if since == 0 { 0 } else { now.saturating_sub(since) };
        self.slept_ns.load(Ordering::Relaxed) + sleeps
    }
}

/// For how long a CPU may let no interrupt in, in nanoseconds: short against what a disk takes, long against a turn of
/// its tasks.
const LONGEST_DEAFNESS_NS: u64 = 1_000_000;

/// When a CPU last let interrupts in. The manager runs with interrupts off, so a CPU whose tasks never sleep and run no
/// process hears of no device.
#[derive(Debug, Default)]
pub struct Hearing {
    /// Stays in processes, and interrupts, when it was last asked.
    heard: u64,
    /// When these changed.
    since: u64,
}

impl Hearing {
    /// Whether it is time to let some in, as of `now`. To be asked between any two rounds of tasks.
    pub fn is_deaf(&mut self, counters: &Counters, now: u64) -> bool {
        let heard = counters.runs.load(Ordering::Relaxed) + counters.interrupts.load(Ordering::Relaxed);
        if heard != self.heard {
            *self = Self { heard, since: now };
        }
        now.saturating_sub(self.since) >= LONGEST_DEAFNESS_NS
    }
}

impl Activity {
    /// CPUs none of which is in use.
    pub const fn new() -> Self {
        Self {
            states: [const { State::new() }; _],
            generation: AtomicU64::new(0),
            still_for: AtomicU8::new(0),
        }
    }

    /// The counters of a CPU.
    pub fn counters(&self, cpu: CpuId) -> Option<&Counters> {
        self.states.get(cpu.index()).map(|state| &state.counters)
    }

    /// This CPU is in use from now on, and can be called.
    pub fn begin(&self, this: CpuId, hardware: &impl Hardware) {
        self.state(this).is_up.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // *fence*: whoever did not see it has changed what this CPU forgets now
        self.answer(this, hardware);
    }

    /// This CPU is about to enter a process in the address space with this root table, not 0. What others leave for it
    /// from now on comes with a call, which cuts the process short; what they have left before is seen after this.
    pub fn enter(&self, this: CpuId, root: u64, hardware: &impl Hardware) {
        let state = self.state(this);
        state.counters.runs.fetch_add(1, Ordering::Relaxed);
        state.root.store(root, Ordering::Relaxed);
        self.leave_manager(this, hardware);
    }

    /// This CPU is about to sleep; otherwise as [`enter`](Self::enter).
    pub fn leave_manager(&self, this: CpuId, hardware: &impl Hardware) {
        self.state(this).place.store(AWAY, Ordering::Relaxed);
        fence(Ordering::SeqCst); // *fence*
        self.answer(this, hardware);
    }

    /// This CPU is back, from wherever it was: it reaches nothing through an address space any more.
    pub fn come_back(&self, this: CpuId, hardware: &impl Hardware) {
        let state = self.state(this);
        state.root.store(0, Ordering::Release);
        state.place.store(MANAGER, Ordering::Relaxed);
        fence(Ordering::SeqCst); // *fence*: whoever saw it in a process has left the forgetting to it
        self.answer(this, hardware);
    }

    /// Makes a CPU look again at what is there for it. What the caller has written is seen then. The CPU may be the
    /// caller.
    pub fn ring(&self, cpu: CpuId, hardware: &impl Hardware) {
        fence(Ordering::SeqCst); // *fence*
        // Called once is enough: it is on its way. (It is never away when it is the one that rings.)
        if self.state(cpu).place.swap(MANAGER, Ordering::Relaxed) == AWAY {
            hardware.call(cpu);
        }
    }

    /// Makes every other CPU that runs in an address space `is_concerned` with the root of leave it, and waits until it
    /// has. It then needs no flush: entering an address space drops every cached translation. The page tables have been
    /// changed before.
    pub fn leave_spaces(&self, this: CpuId, is_concerned: impl Fn(u64) -> bool, hardware: &impl Hardware) {
        fence(Ordering::SeqCst); // *fence*
        let mut called = [None; MAX_CPUS.get() as usize];
        for ((cpu, state), called) in self.others(this).zip(&mut called) {
            // In this order: a CPU that is in the space again has entered it after the change.
            let runs = state.counters.runs.load(Ordering::Acquire);
            let root = state.root.load(Ordering::Acquire);
            if root != 0 && is_concerned(root) {
                hardware.call(cpu);
                count(&self.state(this).counters.leave_calls);
                *called = Some((state, root, runs));
            }
        }
        for (state, root, runs) in called.into_iter().flatten() {
            while state.root.load(Ordering::Acquire) == root
                && state.counters.runs.load(Ordering::Acquire) == runs
            {
                hardware.relax();
            }
        }
    }

    /// Makes all CPUs forget what they have cached of the manager's page tables. When it returns, no CPU uses a translation
    /// that was taken out of them before. May be called with locks held: whoever waits for one answers meanwhile.
    ///
    /// A CPU in a process has forgotten them all on its way in, forgets them again on its way out, and looks for more
    /// to forget before it uses any: it is left alone. One that sleeps is woken for it.
    pub fn forget_everywhere(&self, this: CpuId, hardware: &impl Hardware) {
        let wanted = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst); // *fence*
        self.answer(this, hardware);
        let has_forgotten = |state: &State| {
            state.root.load(Ordering::Acquire) != 0 || state.forgotten.load(Ordering::Acquire) >= wanted
        };
        for (cpu, state) in self.others(this) {
            if !has_forgotten(state) && state.place.load(Ordering::Relaxed) == AWAY {
                hardware.call(cpu);
                count(&self.state(this).counters.forget_calls);
            }
        }
        for (_, state) in self.others(this) {
            while !has_forgotten(state) {
                hardware.relax();
                self.answer(this, hardware);
            }
        }
    }

    /// Does `work` while no other CPU does anything in the manager: each stands still where it next looks for what others want of it, or is
    /// away. Whoever is away reads, on its way, nothing but what is its own and never moves. `work` takes no lock, as who has it may
    /// stand still.
    pub fn while_still(&self, this: CpuId, hardware: &impl Hardware, work: impl FnOnce()) {
        let mine = this.number() + 1;
        while self
            .still_for
            .compare_exchange(0, mine, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            self.answer(this, hardware);
        }
        fence(Ordering::SeqCst); // *fence*
        for (_, state) in self.others(this) {
            while !state.is_still.load(Ordering::Acquire) && state.place.load(Ordering::Acquire) != AWAY {
                self.forget(this, hardware);
                spin_loop();
            }
        }
        work();
        self.still_for.store(0, Ordering::Release);
    }

    /// Does what other CPUs wait for: forgets translations if any were taken away, stands still if one wants that. To be called again and
    /// again by whoever waits for another CPU, or is long in the manager.
    pub fn answer(&self, this: CpuId, hardware: &impl Hardware) {
        self.forget(this, hardware);
        while self.is_to_stand_still(this) {
            let state = self.state(this);
            state.is_still.store(true, Ordering::Release);
            while self.is_to_stand_still(this) {
                self.forget(this, hardware);
                // Not what `hardware` does while it waits: that is to answer.
                spin_loop();
            }
            state.is_still.store(false, Ordering::Relaxed);
            // *fence*: the next one that wants it either sees that this CPU goes on, or is seen by the loop.
            fence(Ordering::SeqCst);
        }
    }

    fn is_to_stand_still(&self, this: CpuId) -> bool {
        let still_for = self.still_for.load(Ordering::Acquire);
        still_for != 0 && still_for != this.number() + 1
    }

    fn forget(&self, this: CpuId, hardware: &impl Hardware) {
        let state = self.state(this);
        let wanted = self.generation.load(Ordering::Acquire);
        if state.forgotten.load(Ordering::Relaxed) != wanted {
            hardware.forget();
            state.forgotten.store(wanted, Ordering::Release);
        }
    }

    fn state(&self, cpu: CpuId) -> &State {
        &self.states[cpu.index()]
    }

    /// The CPUs in use but this one.
    fn others(&self, this: CpuId) -> impl Iterator<Item = (CpuId, &State)> {
        let all = (0..).filter_map(CpuId::new).zip(&self.states);
        all.filter(move |(cpu, state)| *cpu != this && state.is_up.load(Ordering::Acquire))
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl State {
    const fn new() -> Self {
        Self {
            is_up: AtomicBool::new(false),
            place: AtomicU8::new(MANAGER),
            root: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            is_still: AtomicBool::new(false),
            counters: Counters {
                runs: AtomicU64::new(0),
                interrupts: AtomicU64::new(0),
                calls: AtomicU64::new(0),
                leave_calls: AtomicU64::new(0),
                forget_calls: AtomicU64::new(0),
                slept_ns: AtomicU64::new(0),
                asleep_since: AtomicU64::new(0),
            },
        }
    }
}
