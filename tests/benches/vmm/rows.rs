//! The rows of the table, as the project's goals order them.

use std::error::Error;

use crate::ceiling::Ceiling;
use crate::clock::Sample;
use crate::figure::{Effort, Figure};
use crate::process::Vmm;
use crate::ram::{AMOUNT, BLOCK, Blocks, Kind, PFNS_BYTES, Pages};
use crate::row::{Goal, Row, Unit};
use crate::{first_instruction, overhead};

/// The same amount of the same memory given back in one call.
const CEILING: &str = "one discard of all";

/// Samples of rows that fill a GiB for each.
const GIB_ROUNDS: usize = 7;

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
    /// From the start of the process to the guest's first instruction.
    FirstInstruction,
    /// Memory beyond the guest's.
    Overhead(Vmm),
    /// Plugging, so many blocks in each request.
    Plug(u16),
    /// Unplugging memory that is free but was used, so many blocks in each request.
    Unplug(Kind, u16),
    /// Inflating a balloon.
    Inflate(Kind),
}

/// All of them.
pub(crate) fn all() -> Vec<Plan> {
    let mut plans = of_the_process();
    plans.extend(of_memory());
    plans
}

/// What starting and having a VMM costs, and plugging, which no peer does.
fn of_the_process() -> Vec<Plan> {
    let at_most = |name, unit, (target, stretch), measure| Plan {
        name,
        unit,
        goal: Goal::AtMost { target, stretch },
        measure,
    };
    let (ms, mib, us) = (Unit::Milliseconds, Unit::Mebibytes, Unit::Microseconds);
    vec![
        at_most(
            "start to first instruction",
            ms,
            (8.0, 4.0),
            Measure::FirstInstruction,
        ),
        at_most(
            "memory beyond the guest's",
            mib,
            (5.0, 3.0),
            Measure::Overhead(Vmm::Ballast),
        ),
        at_most(
            "the same, with a balloon",
            mib,
            (5.0, 3.0),
            Measure::Overhead(Vmm::BallastWithBalloon),
        ),
        at_most("plug, 1 block a request", us, (5.0, 2.0), Measure::Plug(1)),
        at_most("plug, 64 blocks a request", us, (5.0, 2.0), Measure::Plug(64)),
    ]
}

/// What is held against the ceiling.
fn of_memory() -> Vec<Plan> {
    let of_ceiling = |name, stretch, measure| Plan {
        name,
        unit: Unit::Microseconds,
        goal: Goal::RateOf {
            peer: CEILING,
            target: 0.8,
            stretch,
        },
        measure,
    };
    let unplug = |name, kind, at_once| of_ceiling(name, 0.9, Measure::Unplug(kind, at_once));
    let inflate = |name, kind| of_ceiling(name, 0.8, Measure::Inflate(kind));
    vec![
        unplug("unplug, 1 a request, THP", Kind::Anonymous, 1),
        unplug("unplug, 64 a request, THP", Kind::Anonymous, 64),
        unplug("unplug, 1 a request, memfd", Kind::Memfd, 1),
        unplug("unplug, 64 a request, memfd", Kind::Memfd, 64),
        unplug("unplug, 1 a request, hugetlbfs", Kind::Huge, 1),
        unplug("unplug, 64 a request, hugetlbfs", Kind::Huge, 64),
        inflate("inflate, THP", Kind::Anonymous),
        inflate("inflate, memfd", Kind::Memfd),
        inflate("inflate, hugetlbfs", Kind::Huge),
    ]
}

type Figures = Vec<(String, Figure)>;

impl Plan {
    /// Measures it; if the host has no memory of that kind, says why it cannot.
    ///
    /// # Errors
    /// Something did not work that has to.
    pub(crate) fn measure(&self, effort: Effort) -> Result<Result<Row, String>, Box<dyn Error>> {
        let figures = match self.measure {
            Measure::FirstInstruction => Ok(first_instruction::measure(effort)?),
            Measure::Overhead(ours) => Ok(overhead::measure(effort, ours)?),
            Measure::Plug(at_once) => Ok(plug(effort, at_once)?),
            Measure::Unplug(kind, at_once) => unplug(effort, kind, at_once)?,
            Measure::Inflate(kind) => inflate(effort, kind)?,
        };
        Ok(figures.map(|mut figures| {
            let (_, ours) = figures.remove(0);
            Row {
                name: self.name,
                who: "ballast",
                unit: self.unit,
                goal: self.goal,
                ours,
                peers: figures,
            }
        }))
    }
}

fn us(sample: &Sample) -> f64 {
    sample.ns() / 1e3
}

fn rounds(effort: Effort) -> usize {
    effort.rounds.min(GIB_ROUNDS)
}

/// For a block, all of whose neighbours are plugged too in the same run.
fn plug(effort: Effort, at_once: u16) -> Result<Figures, Box<dyn Error>> {
    let mut blocks = Blocks::new(Kind::Anonymous)?;
    let mut samples = Vec::new();
    for _ in 0..effort.rounds {
        samples.push(us(&blocks.plug(at_once)?));
        blocks.unplug(64)?;
    }
    Ok(vec![("ballast".to_owned(), Figure::of(samples))])
}

fn unplug(effort: Effort, kind: Kind, at_once: u16) -> Result<Result<Figures, String>, Box<dyn Error>> {
    let stride = usize::from(at_once) * usize::try_from(BLOCK)?;
    against_ceiling(effort, kind, ("discards of one request's size", stride), || {
        let mut blocks = Blocks::new(kind)?;
        blocks.plug(64)?;
        blocks.touch()?;
        blocks.unplug(at_once)
    })
}

fn inflate(effort: Effort, kind: Kind) -> Result<Result<Figures, String>, Box<dyn Error>> {
    let piece = usize::try_from(PFNS_BYTES)?;
    against_ceiling(effort, kind, ("discards of 1 MiB", piece), || {
        let mut pages = Pages::new(kind)?;
        pages.touch()?;
        pages.inflate()
    })
}

/// Ours and the ceiling's samples in turn, each with memory of its own: where a huge page was once given back in parts, the
/// kernel has small pages from then on.
fn against_ceiling(
    effort: Effort,
    kind: Kind,
    (pieces, piece): (&str, usize),
    ours: impl Fn() -> Result<Sample, Box<dyn Error>>,
) -> Result<Result<Figures, String>, Box<dyn Error>> {
    let (len, unit) = (usize::try_from(AMOUNT)?, usize::try_from(BLOCK)?);
    let _pool = match kind.reserve() {
        Ok(pool) => pool,
        Err(reason) => return Ok(Err(reason)),
    };
    let names = ["ballast", CEILING, pieces, "discards of 4 KiB"];
    let mut samples = [const { Vec::new() }; 4];
    for round in 0..rounds(effort) {
        samples[0].push(us(&ours()?));
        for (samples, at_once) in samples[1..].iter_mut().zip([len, piece, 4096]) {
            // Pages of 4 KiB are what huge pages are not made of; one sample is enough of the slowest way.
            if at_once == 4096 && (round > 0 || kind == Kind::Huge) {
                continue;
            }
            samples.push(us(&Ceiling::new(kind, len)?.discard(at_once, unit)?));
        }
    }
    let figures = names
        .into_iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.is_empty());
    Ok(Ok(figures
        .map(|(name, samples)| (name.to_owned(), Figure::of(samples)))
        .collect()))
}
