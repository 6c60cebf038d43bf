//! The rows of the table: the library's as `goals.md` orders them, then the guest's, some for each case.

use std::error::Error;

use guest_mm::HugeAdvice;

use crate::case::{self, Case, Fill};
use crate::ceiling::{Ceiling, Kind};
use crate::figure::{Effort, Figure};
use crate::guest::{AMOUNT, Guests, Run};
use crate::measure::{Contestant, race};
use crate::row::{Goal, Row, Unit};
use crate::{library, offline, remap};

/// What guest-mm's figures are called.
pub(crate) const OURS: &str = "guest-mm";
/// What unplugging cannot do without, done by the host alone in the same run: as many pages copied as are in use, and all of the memory given
/// back in one call.
pub(crate) const COPY_AND_DISCARD: &str = "copy + discard";
/// The same program in the same boot, before the guest is to become smaller.
const BEFORE: &str = "before";
/// Boots of each case.
const BOOTS: usize = 3;
/// Pages for which flushes are given.
const PER_PAGES: f64 = 1000.0;

/// A row to be measured.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    unit: Unit,
    goal: Goal,
    measure: Measure,
}

/// How a row comes about.
#[derive(Clone, Copy)]
enum Measure {
    /// Two contestants in turn; ours is the first.
    Race(fn() -> [Contestant; 2]),
    /// One alone.
    Alone(fn() -> Contestant),
    /// Flushes of the library, for pages of that size.
    Flushes(HugeAdvice),
    /// Of a case in the booted guest.
    Guest(Case, Part),
}

/// What is told of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Milliseconds from the order to its end.
    Time,
    /// The program's throughput: the median of the slices of time, of that before.
    Median,
    /// The worst slice but one in a hundred, of the median before.
    Worst,
    /// The longest time between two pages.
    Pause,
    /// Pages that moved; beside them those that left memory.
    Pages,
    /// Calls to the other CPU so that it forgets translations.
    Flushes,
}

impl Part {
    pub(crate) const ALL: [Self; 6] = [
        Self::Time,
        Self::Median,
        Self::Worst,
        Self::Pause,
        Self::Pages,
        Self::Flushes,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Median => "throughput, median",
            Self::Worst => "throughput, worst 1 %",
            Self::Pause => "longest pause",
            Self::Pages => "pages moved",
            Self::Flushes => "flushes",
        }
    }

    const fn unit(self) -> Unit {
        match self {
            Self::Time | Self::Pause => Unit::Milliseconds,
            Self::Median | Self::Worst => Unit::Percent,
            Self::Pages => Unit::Pages,
            Self::Flushes => Unit::Flushes,
        }
    }

    /// Ours in a run, and what is beside it.
    fn figures(self, run: &Run) -> (f64, Option<(&'static str, f64)>) {
        let (before, during) = (run.slices.before(), run.slices.during());
        let share = |pages: f64| pages / before.median * 100.0;
        match self {
            Self::Time => (run.ms, None),
            Self::Median => (share(during.median), Some((BEFORE, 100.0))),
            Self::Worst => (share(during.worst), Some((BEFORE, share(before.worst)))),
            Self::Pause => (during.longest_ms, Some((BEFORE, before.longest_ms))),
            Self::Pages => (run.moved, Some(("left memory", run.left))),
            Self::Flushes => (run.calls, None),
        }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Plan> {
    let mut all = library();
    for case in case::ALL {
        all.extend(Part::ALL.map(|part| Plan {
            // Made once, and needed until the bench ends.
            name: name(case, part).leak(),
            unit: part.unit(),
            goal: goal(case, part),
            measure: Measure::Guest(case, part),
        }));
    }
    all
}

/// What a case's row is called.
pub(crate) fn name(case: Case, part: Part) -> String {
    format!("guest: {case}: {}", part.name())
}

fn goal(case: Case, part: Part) -> Goal {
    if part == Part::Time && case.fill == Fill::Half && case.method == "remap" {
        return Goal::AtMostOf {
            peer: COPY_AND_DISCARD,
            target: 1.3,
        };
    }
    Goal::Compared
}

fn library() -> Vec<Plan> {
    let rate = |name, target, stretch, measure| Plan {
        name,
        unit: Unit::Nanoseconds,
        goal: Goal::RateOf {
            peer: remap::MEMCPY,
            target,
            stretch,
        },
        measure: Measure::Race(measure),
    };
    let flushes = |name, advice| Plan {
        name,
        unit: Unit::Flushes,
        goal: Goal::Compared,
        measure: Measure::Flushes(advice),
    };
    let (small, huge) = (HugeAdvice::NoHuge, HugeAdvice::Huge);
    vec![
        rate("remap, 4 KiB", 0.7, 0.85, || {
            [remap::ours(HugeAdvice::NoHuge), remap::memcpy(HugeAdvice::NoHuge)]
        }),
        rate("remap, 2 MiB", 0.9, 0.95, || {
            [remap::ours(HugeAdvice::Huge), remap::memcpy(HugeAdvice::Huge)]
        }),
        flushes("flushes for 1000 pages, 4 KiB", small),
        flushes("flushes for 1000 pages, 2 MiB", huge),
        rate("swap-out of a block", 0.6, 0.8, || {
            [library::swap_out(), remap::memcpy(HugeAdvice::NoHuge)]
        }),
        Plan {
            name: "isolate + offline, 128 MiB",
            unit: Unit::Nanoseconds,
            goal: Goal::AtMost {
                target: 5000.0,
                stretch: 1200.0,
            },
            measure: Measure::Alone(offline::ours),
        },
    ]
}

/// What is measured once for several rows.
pub(crate) struct Bench {
    effort: Effort,
    guests: Option<Guests>,
    runs: Vec<(Case, Vec<Run>)>,
    /// Milliseconds: a GiB of small pages copied, one of huge ones, and one discarded.
    ceiling: Option<[Figure; 3]>,
}

impl Bench {
    /// Nothing is measured yet.
    pub(crate) const fn new(effort: Effort) -> Self {
        Self {
            effort,
            guests: None,
            runs: Vec::new(),
            ceiling: None,
        }
    }

    /// The runs of a case, if there are any: those with the least time first.
    pub(crate) fn known(&self, case: Case) -> Option<&[Run]> {
        let known = self.runs.iter().find(|(known, _)| *known == case);
        known.map(|(_, runs)| &runs[..])
    }

    fn measure_case(&mut self, case: Case) -> Result<(), Box<dyn Error>> {
        if self.known(case).is_some() {
            return Ok(());
        }
        let guests = match self.guests.take() {
            Some(guests) => guests,
            None => Guests::new()?,
        };
        let guests = self.guests.insert(guests);
        let boots = if self.effort.rounds < Effort::FULL.rounds {
            1
        } else {
            BOOTS
        };
        let mut runs = Vec::new();
        for _ in 0..boots {
            runs.push(guests.unplug(case)?);
        }
        runs.sort_by(|one, other| one.ms.total_cmp(&other.ms));
        self.runs.push((case, runs));
        Ok(())
    }

    /// Copying and discarding alone, for a case.
    fn copy_and_discard(&mut self, case: Case) -> Result<Figure, Box<dyn Error>> {
        let [small, huge, discard] = match self.ceiling {
            Some(ceiling) => ceiling,
            None => *self.ceiling.insert(ceiling(self.effort)?),
        };
        let copy = if case.is_huge { huge } else { small };
        let share = case.fill.percent() as f64 / 100.0;
        let sum = |copy: f64, discard: f64| copy * share + discard;
        Ok(Figure {
            median: sum(copy.median, discard.median),
            min: sum(copy.min, discard.min),
            max: sum(copy.max, discard.max),
        })
    }
}

fn ceiling(effort: Effort) -> Result<[Figure; 3], Box<dyn Error>> {
    let copy = |advice, size: u64| {
        let figures = race(vec![remap::memcpy(advice)], effort);
        let factor = (AMOUNT / size) as f64 / 1e6;
        figures.first().map(|(_, figure)| scaled(*figure, factor))
    };
    let (small, huge) = (copy(HugeAdvice::NoHuge, 4096), copy(HugeAdvice::Huge, 2 << 20));
    let len = usize::try_from(AMOUNT)?;
    let discards = (0..effort.rounds.min(BOOTS))
        .map(|_| Ok(Ceiling::new(Kind::Anonymous, len)?.discard(len, len)?.ns() / 1e6))
        .collect::<std::io::Result<Vec<f64>>>()?;
    let copies = small.zip(huge).ok_or("the copies were not measured")?;
    Ok([copies.0, copies.1, Figure::of(discards)])
}

fn scaled(figure: Figure, factor: f64) -> Figure {
    Figure {
        median: figure.median * factor,
        min: figure.min * factor,
        max: figure.max * factor,
    }
}

impl Plan {
    /// Measures it; if the host has no KVM for the guest's rows, says so.
    ///
    /// # Errors
    /// Something did not work that has to.
    pub(crate) fn measure(&self, bench: &mut Bench) -> Result<Result<Row, String>, Box<dyn Error>> {
        match self.measure {
            Measure::Race(contestants) => Ok(Ok(self.race(contestants().into(), bench.effort))),
            Measure::Alone(contestant) => Ok(Ok(self.race(vec![contestant()], bench.effort))),
            Measure::Flushes(advice) => {
                let flushes = Figure::of(vec![remap::flushes(advice) * PER_PAGES]);
                Ok(Ok(self.row(OURS, flushes, Vec::new())))
            }
            Measure::Guest(case, part) => {
                if !std::fs::exists("/dev/kvm")? {
                    return Ok(Err("there is no /dev/kvm".into()));
                }
                self.guest(bench, case, part).map(Ok)
            }
        }
    }

    fn race(&self, contestants: Vec<Contestant>, effort: Effort) -> Row {
        let mut figures = race(contestants, effort);
        let (_, ours) = figures.remove(0);
        self.row(OURS, ours, figures)
    }

    fn guest(&self, bench: &mut Bench, case: Case, part: Part) -> Result<Row, Box<dyn Error>> {
        bench.measure_case(case)?;
        let runs = bench.known(case).ok_or("it was just measured")?;
        let figures: Vec<_> = runs.iter().map(|run| part.figures(run)).collect();
        let ours = Figure::of(figures.iter().map(|(ours, _)| *ours).collect());
        let mut peers = Vec::new();
        if let Some((_, Some((name, _)))) = figures.first() {
            let values = figures
                .iter()
                .filter_map(|(_, peer)| peer.map(|(_, value)| value));
            peers.push(((*name).to_owned(), Figure::of(values.collect())));
        }
        if part == Part::Time {
            peers.push((COPY_AND_DISCARD.to_owned(), bench.copy_and_discard(case)?));
        }
        Ok(self.row("guest", ours, peers))
    }

    fn row(&self, who: &'static str, ours: Figure, peers: Vec<(String, Figure)>) -> Row {
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
