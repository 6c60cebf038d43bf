//! What the user types, or a pipe delivers: from standard input to the guest's serial port or console, as fast as the guest
//! takes it. Only a terminal has an escape key; what comes from a pipe is the guest's, byte for byte.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::VmExit;
use super::events::listen;
use super::shared::Shared;
use crate::terminal::{ESCAPE_HELP, EscapeFilter, OutputWriter};

/// Bytes that wait for the guest, at most: what is typed beyond is lost.
const MAX_WAITING: usize = 64 << 10;
/// Marks the events of standard input.
const STDIN: u32 = 1;

/// Where typed bytes go: the serial port, or the console.
pub(super) trait InputLine: Send + Sync {
    /// Takes in bytes for the guest, as many as there is room for, and returns how many. [`Self::room`] is signalled when
    /// there is room again.
    fn receive(&self, bytes: &[u8]) -> usize;
    /// Signalled when the guest has read all its input.
    fn room(&self) -> &EventFd;
}

/// Standard input on its way to the guest.
pub(super) struct TerminalInput {
    line: Arc<dyn InputLine>,
    shared: Arc<Shared>,
    screen: OutputWriter,
    escape: Option<EscapeFilter>,
    waiting: VecDeque<u8>,
    source: Source,
}

/// What is done about standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It is watched.
    Watched,
    /// It is left alone until the guest has taken what there is.
    Held,
    /// There is nothing more to come.
    Ended,
}

impl TerminalInput {
    pub(super) fn new(line: Arc<dyn InputLine>, shared: Arc<Shared>, screen: OutputWriter) -> Self {
        let escape = io::stdin().is_terminal().then(EscapeFilter::default);
        Self {
            line,
            shared,
            screen,
            escape,
            waiting: VecDeque::new(),
            source: Source::Held,
        }
    }

    fn read(&mut self, ops: &mut EventOps) {
        let mut bytes = [0; 256];
        // Not through `Stdin`, whose buffer would keep bytes that no event announces any more.
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(count @ 1..) => self.typed(&bytes[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => {
                self.watch(ops, Source::Held);
                self.source = Source::Ended;
            }
        }
    }

    fn typed(&mut self, bytes: &[u8]) {
        let Some(escape) = &mut self.escape else {
            self.waiting.extend(bytes);
            return;
        };
        let typed = escape.feed(bytes);
        if typed.help {
            // The output never fails; a sink that is gone shows nothing.
            let _ = self.screen.write_all(ESCAPE_HELP.as_bytes());
        }
        if typed.stop {
            self.shared.lifecycle.end(Ok(VmExit::Stopped));
        }
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        self.waiting.extend(typed.to_guest.iter().take(room));
    }

    /// Gives the port what it has room for. A pipe is read on only when the port has taken everything; a terminal
    /// always, for the sake of its escape key.
    fn hand_over(&mut self, ops: &mut EventOps) {
        while !self.waiting.is_empty() {
            let taken = self.line.receive(self.waiting.make_contiguous());
            if taken == 0 {
                break;
            }
            self.waiting.drain(..taken);
        }
        let wanted = if self.escape.is_some() || self.waiting.is_empty() {
            Source::Watched
        } else {
            Source::Held
        };
        self.watch(ops, wanted);
    }

    fn watch(&mut self, ops: &mut EventOps, wanted: Source) {
        if self.source == Source::Ended || self.source == wanted {
            return;
        }
        let events = Events::with_data(&io::stdin(), STDIN, EventSet::IN);
        let done = if wanted == Source::Watched {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        // What cannot be polled (a file, /dev/null) gives no input.
        self.source = if done.is_ok() { wanted } else { Source::Ended };
    }
}

impl MutEventSubscriber for TerminalInput {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == STDIN {
            self.read(ops);
        } else {
            // Only its being signalled counts.
            let _ = self.line.room().read();
        }
        self.hand_over(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        listen(ops, Events::new(self.line.room(), EventSet::IN), &self.shared);
        self.watch(ops, Source::Watched);
    }
}
