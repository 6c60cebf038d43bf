//! A run: steps from bytes, then good requests, then a last look at memory.

use std::fmt::Write as _;

use crate::input::Input;
use crate::step::{Initialise, Step};
use crate::subjects::{Stage, Subject};
use crate::violation::Violation;
use crate::world::World;

/// Steps of one run, at most.
const MAX_STEPS: usize = 256;

/// Lets a device meet what `bytes` say, and asks it for good service afterwards.
///
/// # Errors
/// The first promise that was broken. A panic of the device is not caught.
pub fn run<S: Subject>(bytes: &[u8]) -> Result<(), Violation> {
    run_with(bytes, &mut World::<S>::new(S::new), |_| {})
}

/// As [`run`], in a world of the caller's, with every step shown to `observe` before it is taken.
///
/// # Errors
/// As [`run`].
pub fn run_with<S: Subject>(
    bytes: &[u8],
    world: &mut World<S>,
    mut observe: impl FnMut(&Step),
) -> Result<(), Violation> {
    let mut input = Input::new(bytes);
    for _ in 0..MAX_STEPS {
        let Some(step) = Step::decode(&mut input) else {
            break;
        };
        observe(&step);
        world.take(&step)?;
    }
    if world.is_intact() {
        world.process_notified();
    }
    if world.is_intact() {
        good(world, Stage::Running, "without a reset")?;
    }
    world.allow_all();
    S::settle(world);
    for (features, when) in [
        (0, "after a reset"),
        (u64::MAX, "after a reset, with all features"),
    ] {
        world.initialise(Initialise { features, order: 3 });
        world.process_notified();
        good(world, Stage::Started, when)?;
    }
    world.initialise(Initialise {
        features: u64::MAX,
        order: 3,
    });
    world.process_notified();
    world.restart_queues();
    world.process_notified();
    good(
        world,
        Stage::Started,
        "with queues that were stopped and started again",
    )?;
    world
        .guest
        .changed_unseen()
        .map_or(Ok(()), |gpa| Err(Violation::ChangedUnseen { gpa }))
}

fn good<S: Subject>(world: &mut World<S>, stage: Stage, when: &'static str) -> Result<(), Violation> {
    let served = S::good(world, stage);
    world.verdict()?;
    served.map_err(|why| Violation::NotServed { when, why })
}

/// The steps of an input, one a line, as far as they were taken, and how the run ended.
pub fn explain<S: Subject>(bytes: &[u8]) -> String {
    let mut text = String::new();
    let result = run_with(bytes, &mut World::<S>::new(S::new), |step| {
        let _ = writeln!(text, "{step:x?}");
    });
    match result {
        Ok(()) => text + "in order\n",
        Err(violation) => text + &format!("{violation}: {violation:?}\n"),
    }
}
