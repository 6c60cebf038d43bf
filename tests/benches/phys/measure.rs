//! Races: contestants take samples in turn, so that whatever drifts hits all of them alike.

use crate::clock::Sample;
pub(crate) use crate::figure::{Effort, Figure};

/// Who takes part in a race.
pub(crate) struct Contestant {
    /// What the table calls it.
    pub(crate) name: String,
    /// Repeats the work that often and says what it took.
    pub(crate) sample: Box<dyn FnMut(u64) -> Sample>,
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
