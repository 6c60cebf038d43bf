//! The engine on io_uring: jobs go into a ring that the kernel works off, and come out of another.
#![expect(unsafe_code, reason = "entries name memory that the kernel will access later")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use devices::block::MAX_IN_FLIGHT;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::job::{Job, Step};

/// Entries of the ring: all operations of a disk at once.
pub(super) const ENTRIES: u32 = 256;
const _: () = assert!(ENTRIES as usize == MAX_IN_FLIGHT);

/// The engine.
pub(super) struct Uring {
    ring: IoUring,
    file: File,
    event: EventFd,
    /// The jobs that the kernel has, each at the place of its tag: what an entry points to lives here until the end.
    jobs: Vec<Option<Job>>,
    under_way: usize,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uring({} jobs under way)", self.under_way)
    }
}

impl Uring {
    /// Sets up a ring of `entries`, a power of two.
    ///
    /// # Errors
    /// The kernel has no io_uring, does not let us use it, or lacks an operation that disks need.
    pub(super) fn start(file: File, event: &EventFd, entries: u32) -> io::Result<Self> {
        let ring = IoUring::new(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = event.try_clone()?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            file,
            event,
            jobs: (0..MAX_IN_FLIGHT).map(|_| None).collect(),
            under_way: 0,
        })
    }

    pub(super) fn submit(&mut self, job: Job) -> io::Result<()> {
        let entry = self.entry(&job)?;
        let place = job.tag.0;
        let Some(free) = self.jobs.get_mut(place).filter(|slot| slot.is_none()) else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        *free = Some(job);
        // SAFETY: the entry points to nothing but the buffers of a job that has just been put where it stays, unchanged,
        // until its completion has come; they are on the heap, so that moving the job does not move them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // As many entries as jobs: it cannot be full. Whatever it is, the kernel has not got the job.
            self.jobs[place] = None;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.under_way += 1;
        Ok(())
    }

    pub(super) fn commit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory, or completions wait to be taken: try again after those. A full counter is a
                // signalled one.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    let _ = self.event.write(1);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn finished(&mut self) -> Option<(Job, io::Result<u64>)> {
        loop {
            let completion = self.ring.completion().next()?;
            let place = usize::try_from(completion.user_data()).ok();
            // Only what was submitted completes, once.
            let job = place
                .and_then(|place| self.jobs.get_mut(place))
                .and_then(Option::take);
            if let Some(job) = job {
                self.under_way -= 1;
                let answer = completion.result();
                let result =
                    u64::try_from(answer).map_err(|_| io::Error::from_raw_os_error(answer.saturating_neg()));
                return Some((job, result));
            }
        }
    }

    fn entry(&self, job: &Job) -> io::Result<squeue::Entry> {
        let fd = types::Fd(self.file.as_raw_fd());
        let too_many = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let entry = match &job.step {
            Step::Read(transfer) => {
                let buffers = transfer.buffers();
                let count = u32::try_from(buffers.len()).map_err(too_many)?;
                opcode::Readv::new(fd, buffers.as_ptr(), count)
                    .offset(transfer.offset())
                    .build()
            }
            Step::Write(transfer) => {
                let buffers = transfer.buffers();
                let count = u32::try_from(buffers.len()).map_err(too_many)?;
                opcode::Writev::new(fd, buffers.as_ptr(), count)
                    .offset(transfer.offset())
                    .build()
            }
            Step::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Step::Discard(range) | Step::Punch(range) | Step::ZeroRange(range) => {
                let mode = job.step.fallocate_mode().bits().cast_signed();
                opcode::Fallocate::new(fd, range.len)
                    .offset(range.offset)
                    .mode(mode)
                    .build()
            }
        };
        Ok(entry.user_data(job.tag.0 as u64))
    }
}

impl Drop for Uring {
    /// Waits for the kernel to be done with guest memory, which may be unmapped next.
    fn drop(&mut self) {
        while self.under_way > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What is left belongs to the kernel for good: so does its memory.
                Err(_) => {
                    std::mem::forget(std::mem::take(&mut self.jobs));
                    return;
                }
            }
            while self.finished().is_some() {}
        }
    }
}
