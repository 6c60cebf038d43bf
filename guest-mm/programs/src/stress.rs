//! `stress`: works on one mechanism of the memory manager, round after round, and reports what was checked.
//!
//! The allocations themselves are the manager's, on the CPU that this program runs on; here is who asks for them.

use crate::call::{self, say};
use guest_programs::abi::Error;
use guest_programs::options::StressOptions;
use guest_programs::pattern::mix;

/// How long one that stays sleeps at a time.
const STAY_MS: u64 = 1000;

/// Runs until it has done its rounds; the exit status is 1 if any check failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match StressOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let (mut round, mut ok, mut failed) = (0_u64, 0_u64, 0_u64);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        match call::stress(options.row, mix(options.seed ^ mix(round))) {
            Ok(outcome) => {
                call::report(outcome.ok, outcome.failed);
                ok += outcome.ok;
                failed += outcome.failed;
            }
            Err(error) => {
                let why = match error {
                    Error::NoCall => "not in this guest",
                    Error::NoMemory => "no memory for it",
                    _ => "refused",
                };
                say(format_args!("row {}: {why}", options.row.name()));
                return 2;
            }
        }
        round += 1;
        if options.pause_ms > 0 {
            call::sleep_ms(options.pause_ms);
        }
    }
    say(format_args!(
        "row {}: {round} rounds, {ok} checks ok, {failed} failed",
        options.row.name()
    ));
    if options.stays {
        loop {
            call::sleep_ms(STAY_MS);
        }
    }
    u64::from(failed > 0)
}
