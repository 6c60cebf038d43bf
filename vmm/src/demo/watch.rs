//! Looks at the guests and at the host while the demo goes on, and writes what is seen into the scene.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::error::DemoError;
use super::host::resident_bytes;
use super::plan::{Pair, Side};
use super::scene::{Stage, Tone};
use super::view;
use crate::control::client::{ClientError, ControlClient};

/// Between two looks at a guest: blocks come and go within tenths of a second.
const LOOK_PAUSE: Duration = Duration::from_millis(25);
/// Between two looks at the host: short against the time that a guest takes to touch 256 MiB.
const SAMPLE_PAUSE: Duration = Duration::from_millis(5);
/// Looks that may fail in a row (a guest may be too busy to answer one) before it is reported.
const PATIENCE: u32 = 20;

/// Looks at one guest once: what its device says and what it says itself.
///
/// # Errors
/// The VM does not answer, or a guest's answer makes no sense.
pub(super) fn look(stage: &Stage, side: Side, client: &ControlClient) -> Result<(), DemoError> {
    let failed = |source: ClientError| DemoError::Client { side, source };
    let odd = |source| DemoError::View { side, source };
    let status = client.status().map_err(failed)?;
    // The device's view is the newer one: a block that it no longer has is gone, whatever the guest said before.
    let guest = view::blocks(&client.guest("blocks").map_err(failed)?).map_err(odd)?;
    // Guests of the demo have one region.
    let regions = client.blocks().map_err(failed)?;
    let plugged = |index: usize| {
        regions
            .first()
            .is_some_and(|region| region.is_plugged(index as u64))
    };
    let programs = view::programs(&client.guest("ps").map_err(failed)?).map_err(odd)?;
    let counters = view::counters(&client.guest("vmstat").map_err(failed)?).map_err(odd)?;
    let mut scene = stage.scene();
    let now = scene.elapsed();
    let shown = &mut scene.guests[side];
    shown.total = status.total_plugged;
    shown.violations = status.violations;
    shown.blocks.observe(now, plugged, &guest);
    shown.programs = programs;
    shown.counters = counters;
    Ok(())
}

/// Looks at one guest again and again until `over`. A guest that does not answer is reported once, and the last that was
/// seen of it stays in the scene; whether that ends the demo is for others to decide.
pub(super) fn watch(stage: &Stage, side: Side, client: &ControlClient, over: &AtomicBool) {
    let mut failures = 0;
    while !over.load(Ordering::Relaxed) {
        match look(stage, side, client) {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                if failures == PATIENCE && !over.load(Ordering::Relaxed) {
                    stage.say(Tone::Bad, crate::cli::chain(&error));
                }
            }
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// Measures the resident memory of both processes until `over`. A process that has ended holds nothing.
pub(super) fn sample(stage: &Stage, pids: Pair<u32>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let resident = Pair::each(|side| resident_bytes(pids[side]).unwrap_or(0));
        stage.scene().sampled(resident);
        thread::sleep(SAMPLE_PAUSE);
    }
}
