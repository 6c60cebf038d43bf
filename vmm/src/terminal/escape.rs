//! The escape key: Ctrl-A, then a command. Everything else that is typed belongs to the guest.
//!
//! | typed | what happens |
//! |---|---|
//! | Ctrl-A x | the VM stops |
//! | Ctrl-A h | these lines are shown |
//! | Ctrl-A Ctrl-A | the guest gets one Ctrl-A |
//! | Ctrl-A and anything else | nothing: the guest gets neither |

/// What Ctrl-A h shows.
pub const ESCAPE_HELP: &str = "\n\
    Ctrl-A x       stop the VM\n\
    Ctrl-A h       show this help\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";

const ESCAPE: u8 = 0x01;

/// What a piece of input amounts to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Typed {
    /// Bytes for the guest.
    pub to_guest: Vec<u8>,
    /// Whether help was asked for.
    pub help: bool,
    /// Whether the VM is to stop. What was typed after that is dropped.
    pub stop: bool,
}

/// Takes the escape sequences out of what is typed; remembers an escape key at the end of a piece.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Sorts one piece of input.
    pub fn feed(&mut self, input: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in input {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) | (true, byte @ ESCAPE) => typed.to_guest.push(byte),
                (true, b'x' | b'X') => {
                    typed.stop = true;
                    return typed;
                }
                (true, b'h' | b'H' | b'?') => typed.help = true,
                (true, _) => {}
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> Typed {
        let mut filter = EscapeFilter::default();
        pieces
            .iter()
            .map(|piece| filter.feed(piece))
            .fold(Typed::default(), |mut all, piece| {
                all.to_guest.extend(piece.to_guest);
                Typed {
                    help: all.help || piece.help,
                    stop: all.stop || piece.stop,
                    ..all
                }
            })
    }

    #[test]
    fn ordinary_input_goes_to_the_guest() {
        assert_eq!(typed(&[b"ls\r\x03\x1b[A"]).to_guest, b"ls\r\x03\x1b[A");
    }

    #[test]
    fn an_escape_may_be_cut_in_two() {
        assert!(typed(&[b"ab\x01", b"x"]).stop);
        assert_eq!(typed(&[b"ab\x01", b"\x01c"]).to_guest, b"ab\x01c");
    }

    #[test]
    fn unknown_commands_reach_nobody() {
        let all = typed(&[b"a\x01qb"]);
        assert_eq!(
            (all.to_guest.as_slice(), all.help, all.stop),
            (b"ab".as_slice(), false, false)
        );
    }

    #[test]
    fn nothing_typed_after_stop_reaches_the_guest() {
        let all = typed(&[b"a\x01xrm -rf /\r"]);
        assert_eq!((all.to_guest.as_slice(), all.stop), (b"a".as_slice(), true));
    }
}
