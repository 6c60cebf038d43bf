//! Who is which CPU: tokens, one for each.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;

use crate::atomic::{AtomicU64, Ordering};

/// Most CPUs that a [`CpuSet`] can have.
pub const MAX_CPUS: u8 = 64;

/// Number of a CPU, from 0 and below [`MAX_CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(u8);

impl CpuId {
    /// The first CPU: there is always one.
    pub const ZERO: Self = Self(0);

    /// CPU `number`; `None` from [`MAX_CPUS`] on.
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_CPUS {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number, as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    const fn bit(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// *I am CPU n*: what belongs to one CPU alone is reached with its token, which exists once.
///
/// On the host a thread is a CPU as long as it has the token. It can be handed to another thread, but not shared.
#[derive(Debug)]
pub struct Cpu {
    id: CpuId,
    /// `Send`, not `Sync`.
    one_thread: PhantomData<Cell<()>>,
}

impl Cpu {
    /// Which one.
    #[inline]
    pub const fn id(&self) -> CpuId {
        self.id
    }
}

/// The CPUs of a machine, and which of them are taken.
#[derive(Debug)]
pub struct CpuSet {
    nr_cpus: u8,
    claimed: AtomicU64,
}

impl CpuSet {
    /// CPUs 0 to `nr_cpus - 1`, nobody's yet; `None` unless there are 1 to [`MAX_CPUS`].
    pub fn new(nr_cpus: u8) -> Option<Self> {
        (1..=MAX_CPUS).contains(&nr_cpus).then(|| Self {
            nr_cpus,
            claimed: AtomicU64::new(0),
        })
    }

    /// How many there are.
    pub const fn nr_cpus(&self) -> u8 {
        self.nr_cpus
    }

    /// Becomes a CPU; `None` if somebody is it already, or there is none with that number.
    pub fn claim(&self, id: CpuId) -> Option<Cpu> {
        if id.0 >= self.nr_cpus {
            return None;
        }
        // Acquire: what the CPU did under its last owner is seen by the next.
        let before = self.claimed.fetch_or(id.bit(), Ordering::Acquire);
        (before & id.bit() == 0).then_some(Cpu {
            id,
            one_thread: PhantomData,
        })
    }

    /// Gives the token back. (One that is merely dropped keeps its CPU taken.)
    #[expect(clippy::needless_pass_by_value, reason = "the token ends here")]
    pub fn release(&self, cpu: Cpu) {
        self.claimed.fetch_and(!cpu.id.bit(), Ordering::Release);
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_claimed_once_until_it_is_released() {
        let cpus = CpuSet::new(2).unwrap();
        let one = CpuId::new(1).unwrap();
        let cpu = cpus.claim(one).unwrap();
        assert!(cpus.claim(one).is_none());
        assert_eq!(cpus.claim(CpuId::ZERO).unwrap().id(), CpuId::ZERO);
        cpus.release(cpu);
        assert!(cpus.claim(one).is_some());
    }

    #[test]
    fn there_is_no_cpu_beyond_the_set() {
        assert!(CpuSet::new(0).is_none());
        assert!(CpuSet::new(MAX_CPUS + 1).is_none());
        assert!(CpuId::new(MAX_CPUS).is_none());
        let cpus = CpuSet::new(1).unwrap();
        assert!(cpus.claim(CpuId::new(1).unwrap()).is_none());
    }
}
