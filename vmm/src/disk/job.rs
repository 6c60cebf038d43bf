//! What an engine is asked for, and what follows from how it went. Pure but for [`Job::run`].
#![expect(unsafe_code, reason = "preadv and pwritev on guest memory have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use devices::block::{DiskRange, Tag};
use rustix::fs::FallocateFlags;

use super::transfer::Transfer;

/// One system call for the operation `tag`.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tag: Tag,
    pub(super) step: Step,
}

/// Which system call.
#[derive(Debug)]
pub(super) enum Step {
    /// `preadv`.
    Read(Transfer),
    /// `pwritev`.
    Write(Transfer),
    /// `fdatasync`.
    Sync,
    /// `fallocate`: a hole, for a DISCARD.
    Discard(DiskRange),
    /// `fallocate`: a hole, which reads as zeros.
    Punch(DiskRange),
    /// `fallocate`: zeros that stay allocated.
    ZeroRange(DiskRange),
}

impl Job {
    /// What to do after the system call has answered: nothing more, or another one. A call that was interrupted is
    /// repeated, one that did only a part goes on, and zeros that cannot be had by one way are got by the next.
    ///
    /// # Errors
    /// The operation has failed.
    pub(super) fn after(self, result: io::Result<u64>) -> io::Result<Option<Job>> {
        let tag = self.tag;
        let step = match (self.step, result) {
            (step, Err(error)) if is_passing(&error) => step,
            (Step::Read(mut transfer), Ok(done)) => match advanced(&mut transfer, done)? {
                true => return Ok(None),
                false => Step::Read(transfer),
            },
            (Step::Write(mut transfer), Ok(done)) => match advanced(&mut transfer, done)? {
                true => return Ok(None),
                false => Step::Write(transfer),
            },
            (Step::Sync | Step::Discard(_) | Step::Punch(_) | Step::ZeroRange(_), Ok(_)) => return Ok(None),
            (Step::Punch(range), Err(error)) if is_unsupported(&error) => Step::ZeroRange(range),
            (Step::ZeroRange(range), Err(error)) if is_unsupported(&error) => {
                Step::Write(Transfer::zeros(range))
            }
            (_, Err(error)) => return Err(error),
        };
        Ok(Some(Job { tag, step }))
    }

    /// Makes the system call on this thread, and waits for it.
    pub(super) fn run(&self, file: &File) -> io::Result<u64> {
        let moved = match &self.step {
            Step::Read(transfer) => {
                let (buffers, count, offset) = arguments(transfer)?;
                // SAFETY: the transfer keeps the memory that its buffers name; the kernel writes no further.
                unsafe { libc::preadv64(file.as_raw_fd(), buffers, count, offset) }
            }
            Step::Write(transfer) => {
                let (buffers, count, offset) = arguments(transfer)?;
                // SAFETY: the transfer keeps the memory that its buffers name; the kernel reads no further.
                unsafe { libc::pwritev64(file.as_raw_fd(), buffers, count, offset) }
            }
            Step::Sync => return Ok(rustix::fs::fdatasync(file).map(|()| 0)?),
            Step::Discard(range) | Step::Punch(range) | Step::ZeroRange(range) => {
                let mode = self.step.fallocate_mode();
                return Ok(rustix::fs::fallocate(file, mode, range.offset, range.len).map(|()| 0)?);
            }
        };
        u64::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

impl Step {
    /// The mode of the steps that are `fallocate`s.
    pub(super) fn fallocate_mode(&self) -> FallocateFlags {
        let what = match self {
            Step::ZeroRange(_) => FallocateFlags::ZERO_RANGE,
            _ => FallocateFlags::PUNCH_HOLE,
        };
        what | FallocateFlags::KEEP_SIZE
    }
}

/// Takes off what was done; whether that was all.
///
/// # Errors
/// Nothing was done: the file has become shorter, or the device is full.
fn advanced(transfer: &mut Transfer, done: u64) -> io::Result<bool> {
    if done == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    transfer.advance(done);
    Ok(transfer.left() == 0)
}

fn arguments(transfer: &Transfer) -> io::Result<(*const libc::iovec, libc::c_int, libc::off64_t)> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let buffers = transfer.buffers();
    let count = libc::c_int::try_from(buffers.len()).map_err(too_large)?;
    let offset = libc::off64_t::try_from(transfer.offset()).map_err(too_large)?;
    Ok((buffers.as_ptr(), count, offset))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Block devices say EINVAL where a range is not a multiple of their blocks.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::FileExt;

    const RANGE: DiskRange = DiskRange {
        offset: 1024,
        len: 200_704,
    };

    fn job(step: Step) -> Job {
        Job { tag: Tag(3), step }
    }

    fn error(number: i32) -> io::Result<u64> {
        Err(io::Error::from_raw_os_error(number))
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        for number in [libc::EINTR, libc::EAGAIN] {
            let again = job(Step::Sync).after(error(number)).unwrap().unwrap();
            assert!(matches!(again.step, Step::Sync));
            assert_eq!(again.tag, Tag(3));
            let again = job(Step::Write(Transfer::zeros(RANGE)))
                .after(error(number))
                .unwrap();
            assert!(matches!(again.unwrap().step, Step::Write(transfer) if transfer.left() == RANGE.len));
        }
    }

    #[test]
    fn a_call_that_did_a_part_goes_on_behind_it() {
        let rest = job(Step::Write(Transfer::zeros(RANGE)))
            .after(Ok(65_537))
            .unwrap()
            .unwrap();
        let Step::Write(transfer) = rest.step else {
            panic!("{:?}", rest.step)
        };
        assert_eq!(
            (transfer.offset(), transfer.left()),
            (1024 + 65_537, RANGE.len - 65_537)
        );
        let lengths: Vec<usize> = transfer.buffers().iter().map(|buffer| buffer.iov_len).collect();
        assert_eq!(lengths, [65_535, 65_536, 4096]);
        let last = job(Step::Write(transfer)).after(Ok(RANGE.len - 65_537)).unwrap();
        assert!(last.is_none());
    }

    #[test]
    fn a_call_that_did_nothing_has_failed() {
        assert!(job(Step::Read(Transfer::zeros(RANGE))).after(Ok(0)).is_err());
        assert!(
            job(Step::Write(Transfer::zeros(RANGE)))
                .after(error(libc::ENOSPC))
                .is_err()
        );
        assert!(job(Step::Sync).after(error(libc::EIO)).is_err());
    }

    #[test]
    fn zeros_are_got_by_the_next_way_where_one_is_not_to_be_had_and_a_discard_by_none() {
        let next = job(Step::Punch(RANGE))
            .after(error(libc::EOPNOTSUPP))
            .unwrap()
            .unwrap();
        assert!(matches!(next.step, Step::ZeroRange(RANGE)));
        let next = next.after(error(libc::EINVAL)).unwrap().unwrap();
        assert!(matches!(&next.step, Step::Write(zeros) if zeros.left() == RANGE.len));
        assert!(job(Step::Punch(RANGE)).after(error(libc::EIO)).is_err());
        let refused = job(Step::Discard(RANGE))
            .after(error(libc::EOPNOTSUPP))
            .unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn written_zeros_cover_their_range_and_nothing_else() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0xff; 262_144]).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut next = Some(job(Step::Write(Transfer::zeros(RANGE))));
        while let Some(job) = next {
            let result = job.run(&file);
            next = job.after(result).unwrap();
        }
        let mut bytes = vec![0; 262_144];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for (at, byte) in (0_u64..).zip(&bytes) {
            let inside = (RANGE.offset..RANGE.offset + RANGE.len).contains(&at);
            assert_eq!(*byte, if inside { 0 } else { 0xff }, "byte {at}");
        }
    }
}
