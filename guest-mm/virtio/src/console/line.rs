//! Lines out of a stream of bytes, in bounded memory whatever the stream contains.

use alloc::vec::Vec;
use core::fmt;

/// Longest line, without its newline, in bytes. Control commands are a few words.
pub const MAX_LINE: usize = 256;

/// The host sent a line of more than [`MAX_LINE`] bytes; it was dropped up to and including its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong;

impl fmt::Display for LineTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line of more than {MAX_LINE} bytes")
    }
}

impl core::error::Error for LineTooLong {}

/// The line that is coming in.
#[derive(Debug)]
pub(super) struct LineAssembler {
    line: Vec<u8>,
    excess: Excess,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excess {
    None,
    Dropped,
}

impl LineAssembler {
    pub(super) fn new() -> Self {
        Self {
            line: Vec::with_capacity(MAX_LINE),
            excess: Excess::None,
        }
    }

    /// Takes one byte; a newline ends the line, which is returned without it.
    pub(super) fn push(&mut self, byte: u8) -> Option<Result<Vec<u8>, LineTooLong>> {
        match byte {
            b'\n' => {
                let line = core::mem::replace(&mut self.line, Vec::with_capacity(MAX_LINE));
                match core::mem::replace(&mut self.excess, Excess::None) {
                    Excess::None => Some(Ok(line)),
                    Excess::Dropped => Some(Err(LineTooLong)),
                }
            }
            _ if self.line.len() == MAX_LINE => {
                self.excess = Excess::Dropped;
                None
            }
            _ => {
                self.line.push(byte);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<Result<Vec<u8>, LineTooLong>> {
        let mut assembler = LineAssembler::new();
        bytes.iter().filter_map(|&byte| assembler.push(byte)).collect()
    }

    #[test]
    fn bytes_become_lines_at_newlines_only() {
        assert_eq!(lines(b"help"), []);
        assert_eq!(lines(b"help\n\nps x"), [Ok(b"help".to_vec()), Ok(b"".to_vec())]);
        assert_eq!(lines(&[0, 0xff, b'\r', b'\n']), [Ok(alloc::vec![0, 0xff, b'\r'])]);
    }

    #[test]
    fn a_line_of_the_longest_length_passes_and_one_byte_more_does_not() {
        let mut stream = alloc::vec![b'a'; MAX_LINE];
        stream.push(b'\n');
        assert_eq!(lines(&stream), [Ok(alloc::vec![b'a'; MAX_LINE])]);
        stream.insert(0, b'a');
        stream.extend_from_slice(b"ps\n");
        assert_eq!(lines(&stream), [Err(LineTooLong), Ok(b"ps".to_vec())]);
    }
}
