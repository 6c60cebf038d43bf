//! The rows of the table, as the project's goals order them.

use std::error::Error;

use crate::ceiling::Ceiling;
use crate::clock::Sample;
use crate::figure::{Effort, Figure};
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
    Overhead,
    /// Plugging, so many blocks in each request.
    Plug(u16),
    /// Unplugging memory that is free but was used, so many blocks in each request.
    Unplug(Kind, u16),
    /// Inflating a balloon.
    Inflate(Kind),
}

/// All of them.
pub(crate) fn all() -> Vec<Plan> {
    let at_most = |name, unit, target, stretch, measure| Plan {
        name,
        unit,
        goal: Goal::AtMost { target, stretch },
        measure,
    };
    let of_ceiling = |name, target, stretch, measure| Plan {
        name,
        unit: Unit::Microseconds,
        goal: Goal::RateOf {
            peer: CEILING,
            target,
            stretch,
        },
        measure,
    };
    let (ms, us) = (Unit::Milliseconds, Unit::Microseconds);
    vec![
        at_most(
            "start to first instruction",
            ms,
            8.0,
            4.0,
            Measure::FirstInstruction,
        ),
        at_most(
            "memory beyond the guest's",
            Unit::Mebibytes,
            5.0,
            3.0,
            Measure::Overhead,
        ),
        at_most("plug, 1 block a request", us, 5.0, 2.0, Measure::Plug(1)),
        at_most("plug, 64 blocks a request", us, 5.0, 2.0, Measure::Plug(64)),
        of_ceiling(
            "unplug, 1 a request, THP",
            0.8,
            0.9,
            Measure::Unplug(Kind::Anonymous, 1),
        ),
        of_ceiling(
            "unplug, 64 a request, THP",
            0.8,
            0.9,
            Measure::Unplug(Kind::Anonymous, 64),
        ),
        of_ceiling(
            "unplug, 1 a request, memfd",
            0.8,
            0.9,
            Measure::Unplug(Kind::Memfd, 1),
        ),
        of_ceiling(
            "unplug, 64 a request, memfd",
            0.8,
            0.9,
            Measure::Unplug(Kind::Memfd, 64),
        ),
        of_ceiling(
            "unplug, 1 a request, hugetlbfs",
            0.8,
            0.9,
            Measure::Unplug(Kind::Huge, 1),
        ),
        of_ceiling(
            "unplug, 64 a request, hugetlbfs",
            0.8,
            0.9,
            Measure::Unplug(Kind::Huge, 64),
        ),
        of_ceiling("inflate, THP", 0.8, 0.8, Measure::Inflate(Kind::Anonymous)),
        of_ceiling("inflate, memfd", 0.8, 0.8, Measure::Inflate(Kind::Memfd)),
    ]
}

type Figures = Vec<(String, Figure)>;

impl Plan {
    /// Measures it. `None` if the host has no memory of that kind.
    ///
    /// # Errors
    /// Something did not work that has to.
    pub(crate) fn measure(&self, effort: Effort) -> Result<Option<Row>, Box<dyn Error>> {
        let figures = match self.measure {
            Measure::FirstInstruction => Some(first_instruction::measure(effort)?),
            Measure::Overhead => Some(overhead::measure(effort)?),
            Measure::Plug(at_once) => Some(plug(effort, at_once)?),
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

fn unplug(effort: Effort, kind: Kind, at_once: u16) -> Result<Option<Figures>, Box<dyn Error>> {
    let stride = usize::from(at_once) * usize::try_from(BLOCK)?;
    against_ceiling(effort, kind, ("discards of one request's size", stride), || {
        let mut blocks = Blocks::new(kind)?;
        Ok(move || {
            blocks.plug(64)?;
            blocks.touch()?;
            blocks.unplug(at_once)
        })
    })
}

fn inflate(effort: Effort, kind: Kind) -> Result<Option<Figures>, Box<dyn Error>> {
    against_ceiling(
        effort,
        kind,
        ("discards of 1 MiB", usize::try_from(PFNS_BYTES)?),
        || {
            let mut pages = Pages::new(kind)?;
            Ok(move || {
                pages.touch()?;
                pages.inflate()
            })
        },
    )
}

/// Ours and the ceiling's samples in turn; the memory of each is gone while the other's is there.
fn against_ceiling<F: FnMut() -> Result<Sample, Box<dyn Error>>>(
    effort: Effort,
    kind: Kind,
    (pieces, piece): (&str, usize),
    make: impl Fn() -> Result<F, Box<dyn Error>>,
) -> Result<Option<Figures>, Box<dyn Error>> {
    let (len, unit) = (usize::try_from(AMOUNT)?, usize::try_from(BLOCK)?);
    let names = ["ballast", CEILING, pieces, "discards of 4 KiB"];
    let mut samples = [const { Vec::new() }; 4];
    let Some(ceiling) = Ceiling::new(kind, len)? else {
        return Ok(None);
    };
    ceiling.discard(len, unit)?;
    let mut ours = make()?;
    // Pages of 4 KiB are what huge pages are not made of; one sample is enough of the slowest way.
    for round in 0..rounds(effort) {
        samples[0].push(us(&ours()?));
        for (samples, at_once) in samples[1..].iter_mut().zip([len, piece, 4096]) {
            if at_once == 4096 && (round > 0 || kind == Kind::Huge) {
                continue;
            }
            ceiling.fill()?;
            samples.push(us(&ceiling.discard(at_once, unit)?));
        }
    }
    let figures = names
        .into_iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.is_empty());
    Ok(Some(
        figures
            .map(|(name, samples)| (name.to_owned(), Figure::of(samples)))
            .collect(),
    ))
}
