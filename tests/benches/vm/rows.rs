//! The rows of the table.

use guest_mm::{HugeAdvice, Order};

use crate::faults;
use crate::figure::Effort;
use crate::files::{self, Work};
use crate::measure::{Contestant, Figure, race};
use crate::raw;
use crate::reclaim;
use crate::row::{Goal, Row, Unit};
use crate::swap::{self, Way};

/// What guest-mm's figures are called.
pub(crate) const OURS: &str = "guest-mm";

/// A row to be measured.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    unit: Unit,
    goal: Goal,
    measure: fn(Effort) -> Vec<(String, Figure)>,
}

fn against(ours: Contestant, peer: Contestant, effort: Effort) -> Vec<(String, Figure)> {
    race(vec![ours, peer], effort)
}

fn alone(values: &[f64]) -> Vec<(String, Figure)> {
    vec![(OURS.into(), reclaim::figure(values))]
}

const fn time(name: &'static str, measure: fn(Effort) -> Vec<(String, Figure)>) -> Plan {
    Plan {
        name,
        unit: Unit::Nanoseconds,
        goal: Goal::Compared,
        measure,
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Plan> {
    let mut all = faults();
    all.extend(data());
    all.extend(schemes());
    all
}

/// Faults by kind.
fn faults() -> Vec<Plan> {
    vec![
        time("fault, anonymous 4 KiB", |effort| {
            let zeroing = raw::zeroing(Order::ZERO);
            against(faults::anonymous(HugeAdvice::NoHuge), zeroing, effort)
        }),
        time("fault, anonymous 2 MiB", |effort| {
            let zeroing = raw::zeroing(Order::PAGEBLOCK);
            against(faults::anonymous(HugeAdvice::Huge), zeroing, effort)
        }),
        time("fault, zero page", |effort| {
            race(vec![faults::zero_page()], effort)
        }),
        time("fault, copy-on-write 4 KiB", |effort| {
            against(faults::copy_on_write(), raw::memcpy(), effort)
        }),
        time("fault, file page in memory", |effort| {
            race(vec![faults::cached_file()], effort)
        }),
        time("fault, swap-in", |effort| {
            against(swap::ours(Way::In), raw::memcpy(), effort)
        }),
    ]
}

/// What goes to disks and comes from them.
fn data() -> Vec<Plan> {
    let swap_out = time("swap-out to a disk of memory", |effort| {
        against(swap::ours(Way::Out), raw::memcpy(), effort)
    });
    let goal = Goal::RateOf {
        peer: raw::MEMCPY,
        target: 0.6,
        stretch: 0.8,
    };
    vec![
        Plan { goal, ..swap_out },
        time("read of a file, in memory", |effort| {
            against(files::ours(Work::ReadCached), raw::device(), effort)
        }),
        time("read of a file, from the disk", |effort| {
            against(files::ours(Work::ReadCold), raw::device(), effort)
        }),
        time("write of a file, and fsync", |effort| {
            against(files::ours(Work::WriteAndSync), raw::device(), effort)
        }),
    ]
}

/// One workload, by each scheme of reclaim.
fn schemes() -> Vec<Plan> {
    let plan = |unit, plan| Plan { unit, ..plan };
    vec![
        plan(
            Unit::Pages,
            time("two-list, scanned per freed", |effort| {
                alone(&reclaim::two_list(effort).scanned)
            }),
        ),
        plan(
            Unit::Milliseconds,
            time("two-list, the workload", |effort| {
                alone(&reclaim::two_list(effort).ms)
            }),
        ),
        plan(
            Unit::Pages,
            time("two-list, pages swapped in", |effort| {
                alone(&reclaim::two_list(effort).refaults)
            }),
        ),
    ]
}

impl Plan {
    /// Measures it.
    pub(crate) fn measure(&self, effort: Effort) -> Row {
        let mut figures = (self.measure)(effort);
        let (_, ours) = figures.remove(0);
        Row {
            name: self.name,
            who: OURS,
            unit: self.unit,
            goal: self.goal,
            ours,
            peers: figures,
        }
    }
}
