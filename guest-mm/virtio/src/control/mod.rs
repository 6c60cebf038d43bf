//! The guest's end of the control channel: text over the console, one request at a time.
//!
//! ```text
//! host -> guest   COMMAND [ARG...]\n
//! guest -> host   ok LEN\n   followed by LEN bytes
//!             or  err LEN\n  followed by LEN bytes of message
//! ```
//! What commands there are is the kernel's business ([`Handler`]); parsing and framing are here, and pure.

use crate::console::{ConsoleDriver, LineTooLong, MAX_LINE};
use crate::dma::DmaMemory;
use crate::fault::DeviceFault;
use crate::transport::Registers;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// One request of the host: words of printable ASCII, separated by blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// A line that is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// There is no word on it.
    Empty,
    /// A byte that is neither a blank nor printable ASCII.
    OddByte {
        /// The byte.
        byte: u8,
        /// Its position in the line, from 0.
        at: usize,
    },
    /// It is longer than the console takes.
    TooLong,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty command"),
            Self::OddByte { byte, at } => write!(f, "byte {byte:#04x} at position {at} of the command"),
            Self::TooLong => write!(f, "command of more than {MAX_LINE} bytes"),
        }
    }
}

impl core::error::Error for CommandError {}

impl From<LineTooLong> for CommandError {
    fn from(_: LineTooLong) -> Self {
        Self::TooLong
    }
}

impl<'a> Command<'a> {
    /// The command on `line` (without its newline; one carriage return at the end is forgiven).
    ///
    /// # Errors
    /// [`CommandError`], which is meant to be sent back.
    pub fn parse(line: &'a [u8]) -> Result<Self, CommandError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_odd = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'!'..=b'~');
        if let Some(at) = line.iter().position(is_odd) {
            return Err(CommandError::OddByte { byte: line[at], at });
        }
        let text = core::str::from_utf8(line).unwrap_or_default().trim_ascii();
        let name_len = text.find([' ', '\t']).unwrap_or(text.len());
        match text.split_at(name_len) {
            ("", _) => Err(CommandError::Empty),
            (name, arguments) => Ok(Self { name, arguments }),
        }
    }

    /// The first word.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The words after it.
    pub fn arguments(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        self.arguments.split_ascii_whitespace()
    }
}

/// What the guest answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for.
    Ok(String),
    /// Why there is none, in one line without newline.
    Err(String),
}

impl Reply {
    /// The reply as it goes over the wire: header and body.
    pub fn encode(&self) -> Vec<u8> {
        let (word, body) = match self {
            Self::Ok(body) => ("ok", body),
            Self::Err(message) => ("err", message),
        };
        let mut wire = String::with_capacity(body.len() + 16);
        // Writing to a string cannot fail.
        let _ = writeln!(wire, "{word} {}", body.len());
        wire.push_str(body);
        wire.into_bytes()
    }
}

/// Who knows the answers: the kernel.
pub trait Handler {
    /// Carries `command` out, which may take a while: the next one waits. An unknown one is answered with [`Reply::Err`] too.
    fn answer(&mut self, command: &Command<'_>) -> impl Future<Output = Reply>;

    /// The device has been given the last answer: the moment for what must not come before it.
    fn answered(&mut self) {}
}

impl<F: FnMut(&Command<'_>) -> Reply> Handler for F {
    async fn answer(&mut self, command: &Command<'_>) -> Reply {
        self(command)
    }
}

/// The reply to one line, whatever is on it.
pub async fn answer_line(line: Result<&[u8], LineTooLong>, handler: &mut impl Handler) -> Reply {
    let command = line.map_err(CommandError::from).and_then(Command::parse);
    match command {
        Ok(command) => handler.answer(&command).await,
        Err(error) => Reply::Err(alloc::format!("{error}")),
    }
}

/// Serves the control channel on `console` for as long as the device works; returns why it no longer does.
pub async fn serve<R: Registers, M: DmaMemory + Clone>(
    console: &ConsoleDriver<R, M>,
    handler: &mut impl Handler,
) -> DeviceFault {
    loop {
        let line = match console.receive_line().await {
            Ok(line) => line,
            Err(fault) => return fault,
        };
        let line = line.as_deref().map_err(|&too_long| too_long);
        let reply = answer_line(line, handler).await.encode();
        if let Err(fault) = console.transmit(&reply).await {
            return fault;
        }
        handler.answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};
    use proptest::prelude::*;

    /// The reply of a handler that does not wait.
    fn reply_to(line: Result<&[u8], LineTooLong>, handler: &mut impl Handler) -> Reply {
        let answer = pin!(answer_line(line, handler));
        match answer.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => reply,
            Poll::Pending => panic!("the handler waits"),
        }
    }

    fn words(line: &[u8]) -> Result<Vec<&str>, CommandError> {
        let command = Command::parse(line)?;
        Ok(core::iter::once(command.name())
            .chain(command.arguments())
            .collect())
    }

    #[test]
    fn a_command_is_its_words() {
        assert_eq!(words(b"meminfo"), Ok(vec!["meminfo"]));
        assert_eq!(words(b"  blocks\t 3  5 \r"), Ok(vec!["blocks", "3", "5"]));
    }

    #[test]
    fn lines_without_a_command_are_refused_with_the_reason() {
        for blank in [b"".as_slice(), b" ", b"\t \t", b"\r"] {
            assert_eq!(words(blank), Err(CommandError::Empty));
        }
        assert_eq!(words(b"ps\0"), Err(CommandError::OddByte { byte: 0, at: 2 }));
        assert_eq!(
            words(b"\xc3\xa4"),
            Err(CommandError::OddByte { byte: 0xc3, at: 0 })
        );
        assert_eq!(words(b"a\rb"), Err(CommandError::OddByte { byte: b'\r', at: 1 }));
    }

    #[test]
    fn a_reply_says_how_many_bytes_follow() {
        assert_eq!(Reply::Ok("a\nbc\n".into()).encode(), b"ok 5\na\nbc\n");
        assert_eq!(Reply::Ok(String::new()).encode(), b"ok 0\n");
        assert_eq!(
            Reply::Err("no such command".into()).encode(),
            b"err 15\nno such command"
        );
        assert_eq!(Reply::Err("ä".into()).encode(), "err 2\nä".as_bytes());
    }

    #[test]
    fn a_bad_line_is_answered_and_never_reaches_the_handler() {
        let mut handler = |command: &Command<'_>| -> Reply { panic!("called with {command:?}") };
        let reply = reply_to(Err(LineTooLong), &mut handler);
        assert_eq!(reply, Reply::Err("command of more than 256 bytes".into()));
        assert_eq!(
            reply_to(Ok(b""), &mut handler),
            Reply::Err("empty command".into())
        );
    }

    proptest! {
        #[test]
        fn any_line_is_answered_with_a_frame_that_can_be_read_back(line: Vec<u8>) {
            let mut echo = |command: &Command<'_>| Reply::Ok(command.name().into());
            let wire = reply_to(Ok(&line), &mut echo).encode();
            let header_end = wire.iter().position(|&byte| byte == b'\n').unwrap();
            let header = core::str::from_utf8(&wire[..header_end]).unwrap();
            let (word, len) = header.split_once(' ').unwrap();
            prop_assert!(word == "ok" || word == "err");
            prop_assert_eq!(len.parse::<usize>().unwrap(), wire.len() - header_end - 1);
        }
    }
}
