//! The keys that end a drawn demo, read from the terminal as bytes.
//!
//! A terminal that is gone (its window closed, its connection lost) reads as ended for ever after; whoever takes that for
//! "no key yet" and tries again never comes back. So this says [`Pressed::Gone`] once, and is not asked again.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Ctrl-C, which is a byte like any other in raw mode.
const CTRL_C: u8 = 0x03;
/// The escape key, and the first byte of what other keys send.
const ESCAPE: u8 = 0x1b;

/// What came from the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressed {
    /// Nothing that matters.
    Nothing,
    /// A key that ends the demo.
    End,
    /// The terminal is gone.
    Gone,
}

/// The terminal as a source of keys.
#[derive(Debug)]
pub(super) struct Keys {
    tty: OwnedFd,
}

impl Keys {
    /// Standard input if it is a terminal, the controlling terminal otherwise: the one that raw mode is set on.
    pub(super) fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let tty = if stdin.is_terminal() {
            stdin.as_fd().try_clone_to_owned()?
        } else {
            File::open("/dev/tty")?.into()
        };
        Ok(Self { tty })
    }

    /// Waits for a key, at most for `patience`. A signal ends the wait early.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<Pressed> {
        let mut watched = [PollFd::new(&self.tty, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
        match poll(&mut watched, Some(&timeout)) {
            Err(Errno::INTR) | Ok(0) => return Ok(Pressed::Nothing),
            result => result?,
        };
        let mut bytes = [0; 64];
        match rustix::io::read(&self.tty, &mut bytes) {
            Err(Errno::INTR | Errno::AGAIN) => Ok(Pressed::Nothing),
            Ok(0) | Err(_) => Ok(Pressed::Gone),
            Ok(count) => Ok(meaning(&bytes[..count])),
        }
    }
}

/// `q`, Ctrl-C, or Escape alone: what begins with Escape and goes on is another key.
fn meaning(bytes: &[u8]) -> Pressed {
    match bytes {
        [ESCAPE] => Pressed::End,
        [ESCAPE, ..] => Pressed::Nothing,
        _ if bytes.iter().any(|byte| matches!(*byte, b'q' | CTRL_C)) => Pressed::End,
        _ => Pressed::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A line to something that reads like a terminal.
    fn line() -> (UnixStream, Keys) {
        let (ours, theirs) = UnixStream::pair().expect("two ends");
        (ours, Keys { tty: theirs.into() })
    }

    #[test]
    fn only_the_agreed_keys_end_the_demo() {
        let (mut terminal, keys) = line();
        for (sent, expected) in [
            (&b"q"[..], Pressed::End),
            (b"\x03", Pressed::End),
            (b"\x1b", Pressed::End),
            (b"abcq", Pressed::End),
            (b"c", Pressed::Nothing),
            (b"\x1b[A", Pressed::Nothing),
            (b"\x1bOq", Pressed::Nothing),
            (b"\n", Pressed::Nothing),
        ] {
            terminal.write_all(sent).expect("room for it");
            assert_eq!(
                keys.wait(Duration::from_secs(60)).expect("open"),
                expected,
                "{sent:?}"
            );
        }
    }

    #[test]
    fn no_key_is_no_news() {
        let (_terminal, keys) = line();
        assert_eq!(
            keys.wait(Duration::from_millis(1)).expect("open"),
            Pressed::Nothing
        );
    }

    #[test]
    fn a_terminal_that_is_gone_is_told_from_one_that_is_silent() {
        let (terminal, keys) = line();
        drop(terminal);
        assert_eq!(
            keys.wait(Duration::from_secs(60)).expect("poll works"),
            Pressed::Gone
        );
    }
}
