//! The rows of the table.

use std::error::Error;

use guest_mm::{HugeAdvice, Order};

use crate::faults;
use crate::figure::Effort;
use crate::files::{self, Work};
use crate::guest::{Figures, Guests, Part};
use crate::measure::{Contestant, Figure, race};
use crate::raw;
use crate::reclaim::{self, Run, Runs, Workload};
use crate::row::{Goal, Row, Unit};
use crate::swap::{self, Way};

/// What guest-mm's figures are called.
pub(crate) const OURS: &str = "guest-mm";
/// What the schemes of reclaim are called.
pub(crate) const TWO_LIST: &str = "reclaim=two-list";
const LAUNDER: &str = "reclaim=launder";

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
    /// A figure of the booted guest by that name, and what it is measured by.
    Guest(Part, &'static str, (Part, &'static str)),
}

/// What swap, files and faults of the guest are measured by.
const RAW_READ: (Part, &str) = (Part::Raw, "raw read");
const RAW_WRITE: (Part, &str) = (Part::Raw, "raw write");
const SYSTEM_CALL: (Part, &str) = (Part::Faults, "system call");

/// What is measured once for several rows.
pub(crate) struct Bench {
    effort: Effort,
    reclaim: Vec<(Workload, Runs)>,
    guests: Option<Guests>,
    booted: Vec<(Part, Figures)>,
}

impl Bench {
    /// Nothing is measured yet.
    pub(crate) const fn new(effort: Effort) -> Self {
        Self {
            effort,
            reclaim: Vec::new(),
            guests: None,
            booted: Vec::new(),
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

impl Bench {
    /// A figure of the guest.
    fn guest(&mut self, part: Part, name: &str) -> Result<Result<Figure, String>, Box<dyn Error>> {
        if !std::fs::exists("/dev/kvm")? {
            return Ok(Err("there is no /dev/kvm".into()));
        }
        let known = self.booted.iter().position(|(known, _)| *known == part);
        let at = match known {
            Some(at) => at,
            None => {
                let guests = match self.guests.take() {
                    Some(guests) => guests,
                    None => Guests::new()?,
                };
                let figures = self.guests.insert(guests).measure(part, self.effort);
                self.booted.push((part, figures));
                self.booted.len() - 1
            }
        };
        Ok(Ok(self.booted[at].1.of(name)?))
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
    all.extend(in_the_guest());
    all.extend(schemes_in_the_guest());
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
        time("fault, file page from the disk", |effort| {
            against(faults::file_from_disk(), raw::memcpy(), effort)
        }),
        time("fault, first store to a file page", |effort| {
            race(vec![faults::first_store()], effort)
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
            let peers = vec![
                files::ours(Work::ReadCold),
                raw::device(),
                raw::device_and_reader(),
            ];
            race(peers, effort)
        }),
        time("write of a file, and fsync", |effort| {
            let both_ways = raw::device_and_reader();
            race(
                vec![files::ours(Work::WriteAndSync), raw::device(), both_ways],
                effort,
            )
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
        (
            Workload::MappedFile,
            [
                "mapped file, time",
                "mapped file, scanned per freed",
                "mapped file, read from disks",
                "mapped file, swapped out",
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

/// Faults, files and swap in the booted guest.
fn in_the_guest() -> Vec<Plan> {
    let plan = |name, part, figure, peer| Plan {
        name,
        unit: Unit::Microseconds,
        goal: Goal::Compared,
        measure: Measure::Guest(part, figure, peer),
    };
    let fault = |name, figure| plan(name, Part::Faults, figure, SYSTEM_CALL);
    let (files, swap) = (Part::Files, Part::Swap);
    let (short, enough) = (Part::Fill("80M"), Part::Fill("256M"));
    vec![
        fault("guest: fault, anonymous 4 KiB", "fault, anonymous 4 KiB"),
        fault("guest: fault, anonymous 2 MiB", "fault, anonymous 2 MiB"),
        fault("guest: fault, zero page", "fault, zero page"),
        fault("guest: fault, copy-on-write 4 KiB", "fault, copy-on-write 4 KiB"),
        fault("guest: fault, file page in memory", "fault, file page in memory"),
        fault(
            "guest: fault, file page from the disk",
            "fault, file page from the disk",
        ),
        fault(
            "guest: fault, first store to a file page",
            "fault, first store to a file page",
        ),
        fault("guest: fault, swap-in", "fault, swap-in"),
        plan(
            "guest: read of a file, in memory",
            files,
            "read in memory",
            RAW_READ,
        ),
        plan(
            "guest: read of a file, from the disk",
            files,
            "read from the disk",
            RAW_READ,
        ),
        plan(
            "guest: write of a file, and fsync",
            files,
            "written and synced",
            RAW_WRITE,
        ),
        plan("guest: swap-out", swap, "swap-out", RAW_WRITE),
        plan("guest: swap-in", swap, "swap-in", RAW_READ),
        plan("guest: 112 MiB filled on 80", short, "filled", (enough, "filled")),
        plan("guest: 112 MiB read again on 80", short, "read again", RAW_READ),
    ]
}

/// The same workloads as the library's, in the booted guest.
fn schemes_in_the_guest() -> Vec<Plan> {
    let plan = |unit, name, work, figure| Plan {
        name,
        unit,
        goal: Goal::Compared,
        measure: Measure::Guest(
            Part::Workload(work, "two-list"),
            figure,
            (Part::Workload(work, "launder"), figure),
        ),
    };
    let (ms, pages) = (Unit::Milliseconds, Unit::Pages);
    vec![
        plan(ms, "guest: one reading, time", "reading", "reading"),
        plan(
            pages,
            "guest: one reading, scanned per freed",
            "reading",
            "reading, scanned",
        ),
        plan(
            pages,
            "guest: one reading, read from disks",
            "reading",
            "reading, read",
        ),
        plan(
            pages,
            "guest: one reading, swapped out",
            "reading",
            "reading, swapped out",
        ),
        plan(ms, "guest: paging, time", "paging", "paging"),
        plan(
            pages,
            "guest: paging, scanned per freed",
            "paging",
            "paging, scanned",
        ),
        plan(pages, "guest: paging, read from disks", "paging", "paging, read"),
        plan(
            pages,
            "guest: paging, swapped out",
            "paging",
            "paging, swapped out",
        ),
        plan(ms, "guest: mixed, time", "mixed", "mixed"),
        plan(
            pages,
            "guest: mixed, scanned per freed",
            "mixed",
            "mixed, scanned",
        ),
        plan(pages, "guest: mixed, read from disks", "mixed", "mixed, read"),
        plan(pages, "guest: mixed, swapped out", "mixed", "mixed, swapped out"),
        plan(ms, "guest: mapped file, time", "mapped", "mapped"),
        plan(
            pages,
            "guest: mapped file, scanned per freed",
            "mapped",
            "mapped, scanned",
        ),
        plan(
            pages,
            "guest: mapped file, read from disks",
            "mapped",
            "mapped, read",
        ),
    ]
}

impl Plan {
    /// Measures it; if the host has no KVM for the guest's rows, says so.
    ///
    /// # Errors
    /// Something did not work that has to.
    pub(crate) fn measure(&self, bench: &mut Bench) -> Result<Result<Row, String>, Box<dyn Error>> {
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
                (TWO_LIST, two_list, vec![(LAUNDER.into(), launder)])
            }
            Measure::Guest(part, figure, peer) => {
                let ours = match bench.guest(part, figure)? {
                    Ok(ours) => self.in_unit(ours),
                    Err(reason) => return Ok(Err(reason)),
                };
                let (who, name) = match part {
                    Part::Workload(..) => (TWO_LIST, LAUNDER),
                    Part::Fill(_) if peer.0 != Part::Raw => ("guest", "on 256 MiB"),
                    _ => ("guest", peer.1),
                };
                let theirs = bench.guest(peer.0, peer.1)?.map_err(Box::<dyn Error>::from)?;
                (who, ours, vec![(name.into(), self.in_unit(theirs))])
            }
        };
        Ok(Ok(Row {
            name: self.name,
            who,
            unit: self.unit,
            goal: self.goal,
            ours,
            peers,
        }))
    }

    /// A guest's figure, nanoseconds or pages, in the row's unit.
    fn in_unit(&self, figure: Figure) -> Figure {
        let factor = self.unit.nanoseconds().unwrap_or(1.0);
        Figure {
            median: figure.median / factor,
            min: figure.min / factor,
            max: figure.max / factor,
        }
    }
}
