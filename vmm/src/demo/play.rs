//! Plays the script with real guests: shrink the donor, ask the host whether it has the memory back, grow the receiver.
//!
//! One thread does all of this, and it is the one that the guests' processes are tied to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::error::DemoError;
use super::guest::{Guest, PROGRAMS};
use super::home::Home;
use super::host::{Mappings, resident_bytes};
use super::ledger::Ledger;
use super::plan::{Move, Pair, Plan, Side};
use super::scene::{Phase, Stage, Step, Tone};
use super::view::{self, Program};
use super::watch;
use crate::control::client::{ClientError, ControlClient};
use crate::control::registry::RuntimeDir;
use crate::control::report::ResizeState;
use crate::spec::{ByteSize, MIB};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);
/// How long one request to resize waits; then the user may have changed their mind.
const SLICE: Duration = Duration::from_secs(1);
/// A resize that makes no progress for so long is stuck.
const STALL: Duration = Duration::from_secs(30);
/// How long a VM that no longer answers has to end, so that its own message is shown and not that it is silent.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// Programs use most of a guest's memory when they hold this share of it, in per cent. It is what one of them aims at
/// alone, of the somewhat smaller part that the guest's kernel leaves to programs.
const MOST: u64 = 70;

/// Plays the whole script and ends both guests, whatever happens. What is seen is in the scene afterwards.
///
/// # Errors
/// The first thing that went wrong.
pub(super) fn play(plan: &Plan, stage: &Stage, stop: &AtomicBool, limit: Duration) -> Result<(), DemoError> {
    let home = Home::new()?;
    home.remove_on_panic();
    let guests = Pair {
        a: Guest::start(&home, plan, Side::A)?,
        b: Guest::start(&home, plan, Side::B)?,
    };
    let pids = Pair::each(|side| guests[side].pid());
    let over = AtomicBool::new(false);
    let mut run = Run {
        plan,
        stage,
        stop,
        limit,
        registry: home.registry(),
        guests,
    };
    let result = thread::scope(|scope| {
        scope.spawn(|| watch::sample(stage, pids, &over));
        let result = run.run().map_err(|error| run.blame(error));
        if let Err(error) = &result {
            run.say_last_lines(error);
        }
        over.store(true, Ordering::Relaxed);
        result
    });
    stage.scene().phase = Phase::Over;
    result
}

/// What the thread that plays has at hand.
struct Run<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    stop: &'a AtomicBool,
    limit: Duration,
    registry: RuntimeDir,
    guests: Pair<Guest>,
}

/// The control sockets of both guests.
type Clients = Pair<ControlClient>;

impl Run<'_> {
    fn run(&mut self) -> Result<(), DemoError> {
        self.say_start();
        let clients = self.connect()?;
        let watching = self.connect()?;
        let over = AtomicBool::new(false);
        let stage = self.stage;
        thread::scope(|scope| {
            for side in Side::BOTH {
                let (client, over) = (&watching[side], &over);
                scope.spawn(move || watch::watch(stage, side, client, over));
            }
            let result = self.script(&clients);
            over.store(true, Ordering::Relaxed);
            result
        })?;
        // Nobody else writes into the scene any more: these are the numbers of the end.
        for side in Side::BOTH {
            watch::look(stage, side, &clients[side])?;
        }
        for side in Side::BOTH {
            self.guests[side].end(&clients[side]);
        }
        Ok(())
    }

    fn script(&mut self, clients: &Clients) -> Result<(), DemoError> {
        self.await_most_in_use(clients)?;
        self.say_running(clients)?;
        let sizes = self.plan.sizes();
        let mut ledger = Ledger::open(
            self.plan.budget(),
            sizes.allowance,
            Pair::each(|side| self.plan.start_total(side)),
        )?;
        for (number, one) in (1..).zip(self.plan.moves()) {
            self.make(number, *one, &mut ledger, clients)?;
        }
        self.await_most_in_use(clients)?;
        self.stage.scene().phase = Phase::Verifying;
        self.await_a_whole_round(clients)
    }

    /// One move.
    fn make(
        &mut self,
        number: usize,
        one: Move,
        ledger: &mut Ledger,
        clients: &Clients,
    ) -> Result<(), DemoError> {
        let (from, to, bytes) = (one.from, one.to(), one.bytes);
        let of = self.plan.moves().len();
        self.show(number, one, Step::Fill);
        self.await_most_in_use(clients)?;
        self.show(number, one, Step::Shrink);
        self.say(
            Tone::Note,
            format!("move {number}/{of}: {from} → {to} {}", ByteSize(bytes)),
        );
        let began = Instant::now();
        let before = self.resident(from)?;
        let migrated_before = migrated(from, &clients[from])?;
        let target = ledger.held(from) - bytes;
        self.resize(number, from, target, clients)?;
        let shrunk = began.elapsed().as_secs_f64();
        self.show(number, one, Step::Check);
        let seen = self.look_at_host(from)?;
        let sizes = self.plan.sizes();
        let limit = target + sizes.allowance;
        let returned = seen
            .returned(bytes, sizes.boot + sizes.region - target, limit)
            .map_err(|source| DemoError::NotReturned { side: from, source })?;
        let credit = ledger.take_back(from, returned)?;
        let pages = migrated(from, &clients[from])?.saturating_sub(migrated_before);
        let (before, after, limit) = (before / MIB, seen.resident / MIB, limit / MIB);
        self.say(
            Tone::Good,
            format!("  {from}: shrunk in {shrunk:.2} s, {pages} pages moved; host {before} → {after} MiB (≤ {limit})"),
        );
        self.show(number, one, Step::Grow);
        let began = Instant::now();
        ledger.grant(to, credit)?;
        self.resize(number, to, ledger.held(to), clients)?;
        let grown = began.elapsed().as_secs_f64();
        let (held, budget) = (ledger.held_in_all() / MIB, self.plan.budget() / MIB);
        self.say(
            Tone::Good,
            format!("  {to}: grown in {grown:.2} s; {held} of {budget} MiB granted"),
        );
        self.stage.scene().done.push(one);
        Ok(())
    }

    /// Asks a guest for a size and waits until it has it.
    fn resize(&mut self, number: usize, side: Side, target: u64, clients: &Clients) -> Result<(), DemoError> {
        let mut best: Option<u64> = None;
        let mut moved = Instant::now();
        loop {
            self.check(&format!("resizing guest {side}"))?;
            let report = clients[side]
                .resize(target, Some(SLICE))
                .map_err(|source| DemoError::Client { side, source })?;
            if report.outcome == ResizeState::Reached {
                return Ok(());
            }
            let left = report.reached_bytes.abs_diff(target);
            if best.is_none_or(|best| left < best) {
                best = Some(left);
                moved = Instant::now();
            }
            if moved.elapsed() > STALL {
                let reasons = [report.reason, report.guest_reason];
                return Err(DemoError::Stuck {
                    number,
                    side,
                    reached: report.reached_bytes,
                    target,
                    reason: reasons
                        .into_iter()
                        .flatten()
                        .collect::<Vec<_>>()
                        .join("; the guest: "),
                });
            }
        }
    }

    /// The control sockets of both guests, as soon as they are there.
    fn connect(&mut self) -> Result<Clients, DemoError> {
        Ok(Pair {
            a: self.connect_to(Side::A)?,
            b: self.connect_to(Side::B)?,
        })
    }

    fn connect_to(&mut self, side: Side) -> Result<ControlClient, DemoError> {
        let name = self.guests[side].name().clone();
        let registry = self.registry.clone();
        self.wait_for(&format!("starting guest {side}"), || {
            let client = match ControlClient::open_in(&registry, &name) {
                Err(ClientError::Registry(_)) => return Ok(None),
                result => result.map_err(|source| DemoError::Client { side, source })?,
            };
            // The socket of a VM that has registered may still be on its way.
            Ok(client.status().is_ok().then_some(client))
        })
    }

    /// Waits until both guests have the size they are asked to have and their programs use and verify most of it.
    fn await_most_in_use(&mut self, clients: &Clients) -> Result<(), DemoError> {
        for side in Side::BOTH {
            self.wait_for(
                &format!("waiting for the programs of guest {side} to fill memory"),
                || {
                    let failed = |source| DemoError::Client { side, source };
                    let status = clients[side].status().map_err(failed)?;
                    if !status.driver_ready || status.total_plugged != status.total_requested {
                        return Ok(None);
                    }
                    let programs = programs(side, &clients[side])?.unwrap_or_default();
                    Ok(most_in_use(&programs, status.total_plugged).then_some(()))
                },
            )?;
        }
        Ok(())
    }
}

/// Waiting, looking, and telling.
impl Run<'_> {
    /// Waits until every program has gone over all its memory at least once more.
    fn await_a_whole_round(&mut self, clients: &Clients) -> Result<(), DemoError> {
        for side in Side::BOTH {
            let client = &clients[side];
            let mut goals: Option<Vec<u64>> = None;
            self.wait_for(
                &format!("waiting for guest {side} to verify all its memory"),
                || {
                    let Some(programs) = programs(side, client)? else {
                        return Ok(None);
                    };
                    check_all_alive(side, &programs)?;
                    let goals = goals.get_or_insert_with(|| programs.iter().map(after_a_round).collect());
                    let reached = programs
                        .iter()
                        .zip(goals.iter())
                        .all(|(program, goal)| program.is_alive() && program.checks_ok >= *goal);
                    Ok((programs.len() == PROGRAMS.len() && reached).then_some(()))
                },
            )?;
            self.say(
                Tone::Good,
                format!("guest {side} has verified every byte of its programs once more"),
            );
        }
        Ok(())
    }

    /// Tries until there is something; meanwhile the user may end the demo, a guest may die, and time may run out.
    fn wait_for<T>(
        &mut self,
        doing: &str,
        mut attempt: impl FnMut() -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        loop {
            self.check(doing)?;
            if let Some(found) = attempt()? {
                return Ok(found);
            }
            thread::sleep(POLL);
        }
    }

    /// Whether there is any use in going on.
    fn check(&mut self, doing: &str) -> Result<(), DemoError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        for side in Side::BOTH {
            self.guests[side].check_alive()?;
        }
        if self.stage.scene().elapsed() > self.limit {
            return Err(DemoError::TimedOut {
                seconds: self.limit.as_secs(),
                doing: doing.to_owned(),
            });
        }
        Ok(())
    }

    /// The cause behind an error: a VM that dies is noticed first as one that does not answer.
    fn blame(&mut self, error: DemoError) -> DemoError {
        if !matches!(error, DemoError::Client { .. }) {
            return error;
        }
        let deadline = Instant::now() + LAST_BREATH;
        while Instant::now() < deadline {
            for side in Side::BOTH {
                if let Err(died) = self.guests[side].check_alive() {
                    return died;
                }
            }
            thread::sleep(POLL);
        }
        error
    }

    fn resident(&self, side: Side) -> Result<u64, DemoError> {
        resident_bytes(self.guests[side].pid()).map_err(|source| DemoError::Process {
            side,
            action: "measuring its memory",
            source,
        })
    }

    fn look_at_host(&self, side: Side) -> Result<Mappings, DemoError> {
        Mappings::read(self.guests[side].pid()).map_err(|source| DemoError::Process {
            side,
            action: "reading its mappings",
            source,
        })
    }

    fn show(&self, number: usize, what: Move, step: Step) {
        self.stage.scene().phase = Phase::Moving { number, what, step };
    }

    fn say(&self, tone: Tone, text: String) {
        self.stage.say(tone, text);
    }

    fn say_start(&self) {
        for side in Side::BOTH {
            self.stage.scene().guests[side].pid = Some(self.guests[side].pid());
        }
        let sizes = self.plan.sizes();
        self.say(
            Tone::Note,
            format!(
                "budget {}: A {} + B {} MiB, and {} MiB for each VMM",
                ByteSize(self.plan.budget()),
                self.plan.start_total(Side::A) / MIB,
                self.plan.start_total(Side::B) / MIB,
                sizes.allowance / MIB
            ),
        );
    }

    /// What the guests concerned printed last, for whoever looks for the reason of a failure.
    fn say_last_lines(&self, error: &DemoError) {
        let concerned = |side: &Side| match error {
            DemoError::Interrupted => false,
            DemoError::Died { side: dead, .. } => side == dead,
            _ => true,
        };
        for side in Side::BOTH.into_iter().filter(concerned) {
            for line in self.guests[side].last_serial_lines() {
                self.say(Tone::Bad, format!("{side} serial | {line}"));
            }
        }
    }

    fn say_running(&self, clients: &Clients) -> Result<(), DemoError> {
        for side in Side::BOTH {
            let programs = programs(side, &clients[side])?.unwrap_or_default();
            let held: u64 = programs.iter().map(|program| program.rss_kib).sum();
            let total = self.plan.start_total(side);
            self.say(
                Tone::Note,
                format!(
                    "guest {side} is up with {} MiB; its programs hold {} and verify them",
                    total / MIB,
                    held / 1024
                ),
            );
        }
        Ok(())
    }
}

/// A guest's programs; `None` if it cannot tell yet, because its control channel is not open.
fn programs(side: Side, client: &ControlClient) -> Result<Option<Vec<Program>>, DemoError> {
    let text = match client.guest("ps") {
        Err(ClientError::Refused { .. }) => return Ok(None),
        result => result.map_err(|source| DemoError::Client { side, source })?,
    };
    view::programs(&text)
        .map(Some)
        .map_err(|source| DemoError::View { side, source })
}

/// Pages that a guest has migrated so far.
fn migrated(side: Side, client: &ControlClient) -> Result<u64, DemoError> {
    let text = client
        .guest("vmstat")
        .map_err(|source| DemoError::Client { side, source })?;
    view::counters(&text)
        .map(|counters| counters.pages_migrated)
        .map_err(|source| DemoError::View { side, source })
}

/// The programs of the demo run until they are ended; one that has ended earlier has lost its memory.
fn check_all_alive(side: Side, programs: &[Program]) -> Result<(), DemoError> {
    let dead = programs.iter().find(|program| !program.is_alive());
    dead.map_or(Ok(()), |program| {
        Err(DemoError::Lost {
            what: format!(
                "program {:?} of guest {side} has ended: {}",
                program.command, program.state
            ),
        })
    })
}

/// Whether all programs are there, verify, and hold most of `total` bytes.
fn most_in_use(programs: &[Program], total: u64) -> bool {
    let held: u64 = programs.iter().map(|program| program.rss_kib * 1024).sum();
    programs.len() == PROGRAMS.len()
        && programs
            .iter()
            .all(|program| program.is_alive() && program.checks_ok > 0)
        && held * 100 >= total * MOST
}

/// What a program will have verified when it has gone over all its memory once more. Programs check page after page of
/// 4 KiB in turn, each of which counts: twice as many checks as pages hold a round from beginning to end, wherever the
/// count began.
fn after_a_round(program: &Program) -> u64 {
    program.checks_ok + 2 * (program.rss_kib / 4)
}

#[cfg(test)]
mod tests;
