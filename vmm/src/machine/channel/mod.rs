//! The guest control channel, host's end: one command at a time over the console, and its answer.
//!
//! ```text
//! host -> guest   COMMAND [ARG...]\n
//! guest -> host   ok LEN\n or err LEN\n, then LEN bytes
//! ```
//!
//! Replies carry no number, so an answer that comes after its command was given up would pass for the next one. The
//! channel is therefore *out of step* after a time-out, after a broken reply, and when the guest sends unasked; it
//! gets back into step with a command that no guest knows, `sync-N`, whose refusal repeats the name: what comes before
//! that refusal belongs to the past.

mod reply;

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::GuestCommandError;
use reply::{Reply, ReplyReader};

/// The longest command, in bytes: what the guest takes.
pub(super) const MAX_COMMAND: usize = 256;

/// Where commands go: the console device.
pub(super) trait GuestPort {
    /// Whether somebody in the guest listens.
    fn is_open(&self) -> bool;
    /// Sends bytes, all or none of them. Returns whether there was room.
    fn send(&self, bytes: &[u8]) -> bool;
}

/// One guest's channel. Lock order: the state is not locked while the port is used.
#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// A command is under way: others wait their turn.
    busy: bool,
    /// The next reply may not be the answer to the next command.
    out_of_step: bool,
    reader: ReplyReader,
    /// What came while a command is under way.
    arrived: VecDeque<Result<Reply, String>>,
    /// For the names of `sync` commands.
    syncs: u64,
    /// Counts the guest's boots.
    boot: u64,
    ended: bool,
}

impl Channel {
    pub(super) fn new() -> Self {
        let state = State {
            busy: false,
            // A guest may have printed before anybody asked it anything.
            out_of_step: true,
            reader: ReplyReader::default(),
            arrived: VecDeque::new(),
            syncs: 0,
            boot: 0,
            ended: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Sends `line` and returns the text of the answer.
    ///
    /// # Errors
    /// The guest refused, or did not answer properly within `timeout`.
    pub(super) fn command(
        &self,
        port: &impl GuestPort,
        line: &str,
        timeout: Duration,
    ) -> Result<String, GuestCommandError> {
        let printable = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if line.trim().is_empty() || line.len() > MAX_COMMAND || !printable {
            return Err(GuestCommandError::BadCommand {
                line: line.to_owned(),
                max: MAX_COMMAND,
            });
        }
        let wait = Wait {
            deadline: Instant::now() + timeout,
            timeout,
        };
        let turn = self.take_turn(wait)?;
        let reply = turn
            .get_in_step(port, wait)
            .and_then(|()| turn.ask(port, line, wait))?;
        let text = String::from_utf8(reply.body)
            .map_err(|_| GuestCommandError::BadAnswer("it is not UTF-8".to_owned()))?;
        if reply.ok {
            Ok(text)
        } else {
            Err(GuestCommandError::Refused(text))
        }
    }

    /// Bytes came from the guest. For the event loop.
    pub(super) fn receive(&self, mut bytes: &[u8]) {
        let mut state = self.lock();
        if !state.busy {
            state.out_of_step = true;
        }
        while let Some(reply) = state.reader.feed(&mut bytes) {
            if state.busy {
                // A guest that floods fills no more than this.
                if state.arrived.len() < 64 {
                    state.arrived.push_back(reply.map_err(|none| none.0));
                }
                self.changed.notify_all();
            }
        }
    }

    /// The guest has been reset, and what it had not answered it never will. What it had is for whoever asked.
    pub(super) fn restart(&self) {
        let mut state = self.lock();
        state.out_of_step = true;
        state.reader = ReplyReader::default();
        state.boot += 1;
        self.changed.notify_all();
    }

    /// The VM ends: whoever waits is told.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn take_turn(&self, wait: Wait) -> Result<InTurn<'_>, GuestCommandError> {
        let mut state = self.lock();
        while state.busy {
            state = self.wait(state, wait)?;
        }
        if state.ended {
            return Err(GuestCommandError::Ended);
        }
        state.busy = true;
        state.arrived.clear();
        Ok(InTurn {
            channel: self,
            boot: state.boot,
        })
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        wait: Wait,
    ) -> Result<MutexGuard<'a, State>, GuestCommandError> {
        if state.ended {
            return Err(GuestCommandError::Ended);
        }
        let left = wait.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(wait.timed_out());
        }
        Ok(self
            .changed
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when somebody waits.
#[derive(Debug, Clone, Copy)]
struct Wait {
    deadline: Instant,
    timeout: Duration,
}

impl Wait {
    fn timed_out(self) -> GuestCommandError {
        GuestCommandError::TimedOut {
            seconds: self.timeout.as_secs(),
        }
    }
}

/// The right to use the channel, given back when dropped.
struct InTurn<'a> {
    channel: &'a Channel,
    /// The boot of the guest that is asked.
    boot: u64,
}

impl InTurn<'_> {
    /// Makes sure that the next reply answers the next command.
    fn get_in_step(&self, port: &impl GuestPort, wait: Wait) -> Result<(), GuestCommandError> {
        let name = {
            let mut state = self.channel.lock();
            if !state.out_of_step {
                return Ok(());
            }
            state.syncs += 1;
            format!("sync-{}", state.syncs)
        };
        self.send(port, &name, wait)?;
        loop {
            let arrival = self.next_arrival(wait).inspect_err(|_| {
                // Perhaps the guest was reset in the middle of a reply, the rest of which will never come.
                self.channel.lock().reader = ReplyReader::default();
            });
            // Lines that are no reply are the past as well.
            let Ok(reply) = arrival? else { continue };
            if !reply.ok && contains(&reply.body, name.as_bytes()) {
                self.channel.lock().out_of_step = false;
                return Ok(());
            }
        }
    }

    /// Sends a command and waits for the reply. Until that is there, the channel is out of step.
    fn ask(&self, port: &impl GuestPort, line: &str, wait: Wait) -> Result<Reply, GuestCommandError> {
        self.channel.lock().out_of_step = true;
        self.send(port, line, wait)?;
        let reply = self.next_arrival(wait)?.map_err(GuestCommandError::BadAnswer)?;
        let mut state = self.channel.lock();
        // More than one reply to one command: somebody is confused. A guest that has rebooted knows of no command.
        state.out_of_step = !state.arrived.is_empty() || state.boot != self.boot;
        Ok(reply)
    }

    fn send(&self, port: &impl GuestPort, line: &str, wait: Wait) -> Result<(), GuestCommandError> {
        if !port.is_open() {
            return Err(GuestCommandError::NotConnected);
        }
        // No room: the guest has not read what it was sent before, so it will not answer this either.
        if port.send(format!("{line}\n").as_bytes()) {
            Ok(())
        } else {
            Err(wait.timed_out())
        }
    }

    fn next_arrival(&self, wait: Wait) -> Result<Result<Reply, String>, GuestCommandError> {
        let mut state = self.channel.lock();
        loop {
            // Whoever asks for a reboot may be slower than the reboot to see the answer.
            if let Some(arrival) = state.arrived.pop_front() {
                return Ok(arrival);
            }
            if state.boot != self.boot {
                return Err(GuestCommandError::Rebooted);
            }
            state = self.channel.wait(state, wait)?;
        }
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        self.channel.lock().busy = false;
        self.channel.changed.notify_all();
    }
}

fn contains(body: &[u8], name: &[u8]) -> bool {
    // "sync-1" must not be found in "sync-12".
    body.windows(name.len())
        .enumerate()
        .any(|(at, window)| window == name && !body.get(at + name.len()).is_some_and(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests;
