//! Races: contestants take samples in turn, so that whatever drifts hits all of them alike.

use std::time::Duration;

use crate::clock::Sample;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Samples of each contestant.
    pub(crate) rounds: usize,
    /// Least processor time of a sample.
    pub(crate) sample: Duration,
}

impl Effort {
    /// What the published figures are made with.
    pub(crate) const FULL: Self = Self {
        rounds: 21,
        sample: Duration::from_millis(8),
    };
    /// For a look while working.
    pub(crate) const QUICK: Self = Self {
        rounds: 5,
        sample: Duration::from_millis(2),
    };
}

/// Who takes part in a race.
pub(crate) struct Contestant {
    /// What the table calls it.
    pub(crate) name: String,
    /// Repeats the work that often and says what it took.
    pub(crate) sample: Box<dyn FnMut(u64) -> Sample>,
}

/// The middle, the least and the greatest of the samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figure {
    /// Of at least one value.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}

/// Times that a disturbed sample is taken again before it counts as it is.
const PATIENCE: usize = 4;

/// Measures every contestant, nanoseconds an operation, interleaved; who begins changes from round to round.
pub(crate) fn race(mut contestants: Vec<Contestant>, effort: Effort) -> Vec<(String, Figure)> {
    let repeats: Vec<u64> = contestants.iter_mut().map(|one| calibrate(one, effort)).collect();
    let mut samples = vec![Vec::new(); contestants.len()];
    for round in 0..effort.rounds {
        for turn in 0..contestants.len() {
            let index = (turn + round) % contestants.len();
            samples[index].push(undisturbed(&mut contestants[index], repeats[index]).ns());
        }
    }
    let names = contestants.into_iter().map(|one| one.name);
    names.zip(samples.into_iter().map(Figure::of)).collect()
}

/// Repeats that fill a sample. Warms the contestant up on the way.
fn calibrate(contestant: &mut Contestant, effort: Effort) -> u64 {
    let mut repeats = 1;
    while (contestant.sample)(repeats).cpu < effort.sample {
        repeats *= 2;
    }
    repeats
}

fn undisturbed(contestant: &mut Contestant, repeats: u64) -> Sample {
    let mut sample = (contestant.sample)(repeats);
    for _ in 0..PATIENCE {
        if !sample.is_disturbed() {
            break;
        }
        let again = (contestant.sample)(repeats);
        if again.wall < sample.wall {
            sample = again;
        }
    }
    sample
}
