//! The rows of the table.

use guest_mm::{HugeAdvice, Order};

use crate::faults;
use crate::figure::Effort;
use crate::files::{self, Work};
use crate::measure::{Contestant, Figure, race};
use crate::raw;
use crate::reclaim::{self, Run, Runs, Workload};
use crate::row::{Goal, Row, Unit};
use crate::swap::{self, Way};

/// What guest-mm's figures are called.
pub(crate) const OURS: &str = "guest-mm";

/// A row to be measured.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    unit: Unit,
    goal: Goal,
    measure: Measure,
}

/// One figure of a run.
type Value = fn(&Run) -> f64;

/// How a row comes about.
#[derive(Clone, Copy)]
enum Measure {
    /// Contestants in turn; ours is the first.
    Race(fn(Effort) -> Vec<(String, Figure)>),
    /// A figure of a workload by both schemes of reclaim.
    Schemes(Workload, Value),
}

/// What is measured once for several rows.
pub(crate) struct Bench {
    effort: Effort,
    reclaim: Vec<(Workload, Runs)>,
}

impl Bench {
    /// Nothing is measured yet.
    pub(crate) const fn new(effort: Effort) -> Self {
        Self {
            effort,
            reclaim: Vec::new(),
        }
    }

    fn runs(&mut self, workload: Workload) -> &Runs {
        let known = self.reclaim.iter().position(|(known, _)| *known == workload);
        let at = known.unwrap_or_else(|| {
            self.reclaim
                .push((workload, reclaim::runs(workload, self.effort)));
            self.reclaim.len() - 1
        });
        &self.reclaim[at].1
    }
}

fn against(ours: Contestant, peer: Contestant, effort: Effort) -> Vec<(String, Figure)> {
    race(vec![ours, peer], effort)
}

const fn time(name: &'static str, measure: fn(Effort) -> Vec<(String, Figure)>) -> Plan {
    Plan {
        name,
        unit: Unit::Nanoseconds,
        goal: Goal::Compared,
        measure: Measure::Race(measure),
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

/// The same workloads by both schemes of reclaim.
fn schemes() -> Vec<Plan> {
    let names = [
        (
            Workload::OneReading,
            [
                "one reading, time",
                "one reading, scanned per freed",
                "one reading, read from disks",
                "one reading, swapped out",
            ],
        ),
        (
            Workload::Paging,
            [
                "paging, time",
                "paging, scanned per freed",
                "paging, read from disks",
                "paging, swapped out",
            ],
        ),
        (
            Workload::Mixed,
            [
                "mixed, time",
                "mixed, scanned per freed",
                "mixed, read from disks",
                "mixed, swapped out",
            ],
        ),
    ];
    let figures: [(Unit, Value); 4] = [
        (Unit::Milliseconds, |run| run.ms),
        (Unit::Pages, |run| run.scanned),
        (Unit::Pages, |run| run.read),
        (Unit::Pages, |run| run.swapped_out),
    ];
    let mut plans = Vec::new();
    for (workload, names) in names {
        for (name, (unit, of)) in names.into_iter().zip(figures) {
            plans.push(Plan {
                name,
                unit,
                goal: Goal::Compared,
                measure: Measure::Schemes(workload, of),
            });
        }
    }
    plans
}

impl Plan {
    /// Measures it.
    pub(crate) fn measure(&self, bench: &mut Bench) -> Row {
        let (who, ours, peers) = match self.measure {
            Measure::Race(measure) => {
                let mut figures = measure(bench.effort);
                let (_, ours) = figures.remove(0);
                (OURS, ours, figures)
            }
            Measure::Schemes(workload, of) => {
                let runs = bench.runs(workload);
                let launder = reclaim::figure(&runs.launder, of);
                let two_list = reclaim::figure(&runs.two_list, of);
                (
                    "reclaim=two-list",
                    two_list,
                    vec![("reclaim=launder".into(), launder)],
                )
            }
        };
        Row {
            name: self.name,
            who,
            unit: self.unit,
            goal: self.goal,
            ours,
            peers,
        }
    }
}
