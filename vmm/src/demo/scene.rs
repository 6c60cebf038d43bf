//! Everything that is shown of a running demo, in one place: the threads that run it write here, and the terminal, the
//! plain lines and the picture are three ways to read it.
//!
//! [`Stage`] is the shared, locked scene. Nobody holds its lock while waiting for a guest or the host.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::model::BlockMap;
use super::plan::{Move, Pair, Plan, Side};
use super::view::{Counters, Program};

/// A line of the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, since the start of the demo.
    pub at: Duration,
    /// What kind of event.
    pub tone: Tone,
    /// What happened.
    pub text: String,
}

/// How an event is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Something goes on.
    Note,
    /// Something was shown to be right.
    Good,
    /// Something is wrong.
    Bad,
}

/// What the demo is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Both guests boot and their programs fill memory.
    Starting,
    /// A move is being made.
    Moving {
        /// Its number, from 1.
        number: usize,
        /// The move.
        what: Move,
        /// How far it is.
        step: Step,
    },
    /// All moves are made; every program goes over all its memory once more.
    Verifying,
    /// It is over.
    Over,
}

/// The steps of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Programs fill what their guest has got, so that what is moved next is in use.
    Fill,
    /// The donor gives blocks up.
    Shrink,
    /// The host is asked whether it has the memory back.
    Check,
    /// The receiver takes blocks.
    Grow,
}

/// What is shown of one guest.
#[derive(Debug, Clone)]
pub struct GuestScene {
    /// Process of its VMM; `None` until it is started.
    pub pid: Option<u32>,
    /// Its blocks.
    pub blocks: BlockMap,
    /// Boot memory and plugged memory, in bytes.
    pub total: u64,
    /// The most it can have, in bytes.
    pub limit: u64,
    /// Resident memory of its process, in bytes, as the host counts it.
    pub resident: u64,
    /// Its programs.
    pub programs: Vec<Program>,
    /// Its counters.
    pub counters: Counters,
    /// Its accesses to blocks that were not plugged.
    pub violations: u64,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct Scene {
    /// When the demo began.
    pub start: Instant,
    /// How many moves there will be.
    pub nr_moves: usize,
    /// What may be held on the host, in bytes.
    pub budget: u64,
    /// The most that was seen resident at one time in both processes together, in bytes.
    pub peak: u64,
    /// What is going on.
    pub phase: Phase,
    /// The moves that are completed.
    pub done: Vec<Move>,
    /// The guests.
    pub guests: Pair<GuestScene>,
    /// What has happened, oldest first.
    pub log: Vec<Line>,
}

impl Scene {
    /// The scene before anything has started.
    #[must_use]
    pub fn new(plan: &Plan, start: Instant) -> Self {
        Self {
            start,
            nr_moves: plan.moves().len(),
            budget: plan.budget(),
            peak: 0,
            phase: Phase::Starting,
            done: Vec::new(),
            guests: Pair::each(|_| GuestScene {
                pid: None,
                blocks: BlockMap::new(plan.nr_blocks()),
                total: plan.sizes().boot,
                limit: plan.sizes().boot + plan.sizes().region,
                resident: 0,
                programs: Vec::new(),
                counters: Counters::default(),
                violations: 0,
            }),
            log: Vec::new(),
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Resident in both processes, in bytes.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.guests.iter().map(|guest| guest.resident).sum()
    }

    /// Books one look at both processes.
    pub fn sampled(&mut self, resident: Pair<u64>) {
        for side in Side::BOTH {
            self.guests[side].resident = resident[side];
        }
        self.peak = self.peak.max(self.resident());
    }
}

/// The scene as the threads of the demo share it.
#[derive(Debug)]
pub struct Stage {
    scene: Mutex<Scene>,
    said: Condvar,
}

impl Stage {
    /// Shares a scene.
    #[must_use]
    pub fn new(scene: Scene) -> Self {
        Self {
            scene: Mutex::new(scene),
            said: Condvar::new(),
        }
    }

    /// The scene, for as long as the guard lives. Hold it for moments only. A thread that panicked while it held the
    /// lock has left plain data behind, and what is shown is no reason to fail.
    pub fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line to the log and wakes whoever prints it.
    pub fn say(&self, tone: Tone, text: String) {
        let mut scene = self.scene();
        let at = scene.start.elapsed();
        scene.log.push(Line { at, tone, text });
        drop(scene);
        self.said.notify_all();
    }

    /// Lines that were said after the first `seen`; waits up to `patience` if there are none yet.
    #[must_use]
    pub fn lines_after(&self, seen: usize, patience: Duration) -> Vec<Line> {
        let (scene, _) = self
            .said
            .wait_timeout_while(self.scene(), patience, |scene| scene.log.len() <= seen)
            .unwrap_or_else(PoisonError::into_inner);
        scene.log.get(seen..).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> Stage {
        let plan = Plan::new(4).expect("four are enough");
        Stage::new(Scene::new(&plan, Instant::now()))
    }

    #[test]
    fn the_peak_is_that_of_both_guests_at_one_time() {
        let stage = stage();
        let mut scene = stage.scene();
        scene.sampled(Pair { a: 700, b: 100 });
        scene.sampled(Pair { a: 100, b: 650 });
        assert_eq!((scene.resident(), scene.peak), (750, 800));
    }

    #[test]
    fn a_waiting_reader_gets_each_line_once() {
        let stage = stage();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut read = Vec::new();
                while read.len() < 3 {
                    read.extend(stage.lines_after(read.len(), Duration::from_secs(60)));
                }
                read
            });
            for text in ["one", "two", "three"] {
                stage.say(Tone::Note, text.to_owned());
            }
            let texts: Vec<String> = reader
                .join()
                .expect("the reader only reads")
                .into_iter()
                .map(|line| line.text)
                .collect();
            assert_eq!(texts, ["one", "two", "three"]);
        });
        assert!(stage.lines_after(3, Duration::ZERO).is_empty());
    }
}
