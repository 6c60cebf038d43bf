//! The rows of the table, as `goals.md` orders them.

use guest_mm::HugeAdvice;

use crate::blocks;
use crate::frames::{FrameSuite, HUGE};
use crate::measure::{Contestant, Effort, Figure, race};
use crate::migrate;
use crate::objects::ObjectSuite;
use crate::offline;
use crate::ours::GuestMm;
use crate::peers::{self, Plugin};
use crate::row::{Goal, Row, Unit};

/// What guest-mm's figures are called.
pub(crate) const OURS: &str = "guest-mm";

/// What guest-mm's one thread is called beside its two.
const SINGLE: &str = "guest-mm, 1 thread";

/// A row to be measured.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    unit: Unit,
    goal: Goal,
    measure: Measure,
}

/// How a row comes about.
enum Measure {
    /// `get` and `put` of a chunk of that order, one thread.
    Pairs(u32),
    /// The same at order 0 with two threads.
    TwoThreads,
    /// Half of the memory frame by frame, and back.
    Bulk,
    /// Free 2 MiB frames after the random half-full workload.
    HalfFull,
    /// `get` and `put` of an object of that size.
    Objects(usize),
    /// A free block of 128 MiB goes offline.
    Offline,
    /// Size of a descriptor.
    Descriptor,
    /// Pages move off an isolated block.
    Migrate(HugeAdvice),
}

/// All of them.
pub(crate) fn all() -> Vec<Plan> {
    let time = |name, target, stretch, measure| Plan {
        name,
        unit: Unit::Nanoseconds,
        goal: Goal::AtMost { target, stretch },
        measure,
    };
    let migration = |name, advice, target, stretch| Plan {
        name,
        unit: Unit::Nanoseconds,
        goal: Goal::RateOf {
            peer: migrate::MEMCPY,
            target,
            stretch,
        },
        measure: Measure::Migrate(advice),
    };
    let two_threads = Plan {
        name: "order-0 pair, 2 threads",
        unit: Unit::Nanoseconds,
        goal: Goal::AtMostOf {
            peer: SINGLE,
            target: 1.1,
        },
        measure: Measure::TwoThreads,
    };
    let half_full = Plan {
        name: "half-full, free 2 MiB frames",
        unit: Unit::Percent,
        goal: Goal::AtLeast {
            target: 45.0,
            stretch: 49.0,
        },
        measure: Measure::HalfFull,
    };
    let descriptor = Plan {
        name: "descriptor of a page",
        unit: Unit::Bytes,
        goal: Goal::AtMost {
            target: 32.0,
            stretch: 24.0,
        },
        measure: Measure::Descriptor,
    };
    vec![
        time("order-0 pair, 1 thread", 14.0, 7.0, Measure::Pairs(0)),
        two_threads,
        time("bulk order-0 get + put", 28.0, 18.0, Measure::Bulk),
        time("order-9 pair", 25.0, 14.0, Measure::Pairs(HUGE)),
        half_full,
        time("kmem_cache pair, 64 B", 10.0, 7.6, Measure::Objects(64)),
        time("kmem_cache pair, 128 B", 10.0, 7.6, Measure::Objects(128)),
        time("kmem_cache pair, 256 B", 10.0, 7.6, Measure::Objects(256)),
        time("kmem_cache pair, 512 B", 10.0, 7.6, Measure::Objects(512)),
        time("kmem_cache pair, 1024 B", 10.0, 7.6, Measure::Objects(1024)),
        descriptor,
        migration("remap migration, 4 KiB", HugeAdvice::NoHuge, 0.7, 0.85),
        migration("remap migration, 2 MiB", HugeAdvice::Huge, 0.9, 0.95),
        time("isolate + offline, 128 MiB", 5000.0, 1200.0, Measure::Offline),
    ]
}

impl Plan {
    /// Measures it.
    pub(crate) fn measure(&self, effort: Effort, plugins: &[Plugin]) -> Row {
        let suites = |own: Box<dyn FrameSuite>, peers: Vec<Box<dyn FrameSuite>>| {
            std::iter::once(own).chain(peers).collect::<Vec<_>>()
        };
        match self.measure {
            Measure::Pairs(order) => {
                let suites = suites(ours(), peers::frames(plugins));
                self.race(suites.iter().map(|suite| suite.pairs(order, 1)), effort)
            }
            Measure::TwoThreads => {
                let peers = peers::shared_frames(plugins);
                let mut single = ours().pairs(0, 1);
                single.name = SINGLE.into();
                let pairs = peers.iter().map(|suite| suite.pairs(0, 2));
                self.race([ours().pairs(0, 2), single].into_iter().chain(pairs), effort)
            }
            Measure::Bulk => {
                let suites = suites(ours(), peers::frames(plugins));
                self.race(suites.iter().map(|suite| suite.bulk()), effort)
            }
            Measure::HalfFull => self.half_full(&suites(ours(), peers::frames(plugins)), effort),
            Measure::Objects(size) => {
                let peers = peers::objects();
                let pairs = peers.iter().map(|suite| suite.pairs(size));
                self.race(
                    std::iter::once(ObjectSuite::pairs(&GuestMm, size)).chain(pairs),
                    effort,
                )
            }
            Measure::Offline => self.race(
                std::iter::once(offline::ours()).chain(blocks::peers(plugins)),
                effort,
            ),
            Measure::Migrate(advice) => self.race(
                [migrate::ours(advice), migrate::memcpy(advice)].into_iter(),
                effort,
            ),
            Measure::Descriptor => {
                let size = |name: &str, bytes| (name.to_owned(), Figure::of(vec![bytes]));
                self.row(vec![
                    size(OURS, size_of::<guest_mm::Page>() as f64),
                    // `struct page` on x86-64, include/linux/mm_types.h.
                    size("Linux struct page", 64.0),
                ])
            }
        }
    }

    /// A race whose first contestant is guest-mm.
    fn race(&self, contestants: impl Iterator<Item = Contestant>, effort: Effort) -> Row {
        self.row(race(contestants.collect(), effort))
    }

    /// Three seeds; nothing here depends on time.
    fn half_full(&self, suites: &[Box<dyn FrameSuite>], effort: Effort) -> Row {
        let share = |suite: &dyn FrameSuite| {
            let seeds = [
                0x9e37_79b9_7f4a_7c15,
                0x2545_f491_4f6c_dd1d,
                0xda94_2042_e4dd_58b5,
            ];
            let seeds = &seeds[..effort.rounds.min(3)];
            let shares = seeds.iter().map(|&seed| suite.half_full(seed) * 100.0);
            (suite.label(), Figure::of(shares.collect()))
        };
        self.row(suites.iter().map(|suite| share(&**suite)).collect())
    }

    fn row(&self, mut figures: Vec<(String, Figure)>) -> Row {
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

fn ours() -> Box<dyn FrameSuite> {
    Box::new(GuestMm)
}
