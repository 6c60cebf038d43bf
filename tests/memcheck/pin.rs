//! Holds memory that the kernel cannot move: pipes full of data, whose buffers are pages of the kernel's own. Each has a
//! capacity of 64 KiB (pipe(7)). When all are full the file holds `pinned B` (bytes); on a line of standard input, or its
//! end, everything is read back and verified, and the file holds `wrong W` (bytes).

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};

const CAPACITY: usize = 64 << 10;

/// Holds `mebibytes` until standard input says something. Takes 32 file descriptors for each.
pub(crate) fn pin(mebibytes: usize, file: &str) -> Result<(), String> {
    let count = (mebibytes << 20) / CAPACITY;
    let mut pipes: Vec<(PipeReader, PipeWriter)> = Vec::with_capacity(count);
    for number in 0..count {
        let (reader, mut writer) = pipe().map_err(|error| format!("pipe {number}: {error}"))?;
        let filled = writer.write_all(&[pattern(number); CAPACITY]);
        filled.map_err(|error| format!("pipe {number}: {error}"))?;
        pipes.push((reader, writer));
    }
    crate::report(file, &format!("pinned {}\n", count * CAPACITY))?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| format!("standard input: {error}"))?;
    let mut wrong = 0;
    for (number, (mut reader, writer)) in pipes.into_iter().enumerate() {
        drop(writer);
        let mut data = Vec::with_capacity(CAPACITY);
        reader
            .read_to_end(&mut data)
            .map_err(|error| format!("pipe {number}: {error}"))?;
        wrong += CAPACITY.abs_diff(data.len()) + data.iter().filter(|it| **it != pattern(number)).count();
    }
    crate::report(file, &format!("wrong {wrong}\n"))
}

/// What the pipe with this number is filled with: never 0, and neighbours differ.
fn pattern(number: usize) -> u8 {
    u8::try_from(number % 251 + 1).unwrap_or(u8::MAX)
}
