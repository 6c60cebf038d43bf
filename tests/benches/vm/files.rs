//! Files read and written through the page cache, on a disk of memory. One operation is one page.

use guest_mm::mm::mapping::{FileError, ReadAhead};

use crate::clock::{Sample, Stopwatch};
use crate::machine::{Machine, PAGE};
use crate::measure::Contestant;
use crate::rows::OURS;

const PAGES: u64 = 2048;

/// What is done with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Read, all of it in memory.
    ReadCached,
    /// Read, nothing in memory.
    ReadCold,
    /// Written, and synced.
    WriteAndSync,
}

/// A file from its beginning to its end.
pub(crate) fn ours(work: Work) -> Contestant {
    let machine = Machine::new();
    let cached = machine.file(PAGES);
    read(&machine, cached);
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            let mut all = Sample::default();
            for _ in 0..repeats {
                let file = match work {
                    Work::ReadCached => cached,
                    Work::ReadCold => machine.file(PAGES),
                    Work::WriteAndSync => machine.file(0),
                };
                let watch = Stopwatch::start();
                match work {
                    Work::ReadCached | Work::ReadCold => read(&machine, file),
                    Work::WriteAndSync => write(&machine, file),
                }
                all += watch.stop(PAGES);
                if work != Work::ReadCached {
                    machine.remove(file);
                }
            }
            all
        }),
    }
}

fn bytes() -> usize {
    usize::try_from(PAGES * PAGE).expect("8 MiB")
}

/// Into a buffer of one page, as a program's would be.
pub(crate) fn read(machine: &Machine, file: guest_mm::mm::MappingId) {
    let mut page = vec![0; usize::try_from(PAGE).expect("4096")];
    let to = |_: usize, piece: &[u8]| {
        page[..piece.len()].copy_from_slice(piece);
        Ok::<(), FileError>(())
    };
    let mut ahead = ReadAhead::default();
    let read = machine
        .mm
        .read_file(&machine.cpu, file, &mut ahead, (0, bytes()), to);
    assert_eq!(machine.run(read), Ok(bytes()));
}

fn write(machine: &Machine, file: guest_mm::mm::MappingId) {
    let page = vec![7; usize::try_from(PAGE).expect("4096")];
    let from = |_: usize, piece: &mut [u8]| {
        piece.copy_from_slice(&page[..piece.len()]);
        Ok::<(), FileError>(())
    };
    let write = machine
        .mm
        .write_file(&machine.cpu, file, machine, (0, bytes()), from);
    assert_eq!(machine.run(write), Ok(bytes()));
    assert_eq!(machine.run(machine.mm.sync(&machine.cpu, file)), Ok(()));
}
