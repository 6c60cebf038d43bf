//! One transfer between a file and guest memory: the addresses for the kernel, and what keeps them good.
#![expect(
    unsafe_code,
    reason = "addresses of guest memory are handed to the kernel, from whichever thread"
)]

use std::fmt;

use devices::block::{DiskRange, MAX_WRITE_ZEROES_LEN};
use devices::queue::Extent;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::memory::{CheckedMemory, Pin};

/// Where zeros are written from when a file system has no better way.
static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);
const ZEROS_LEN: usize = 64 << 10;
/// Most buffers of one system call (`UIO_MAXIOV`).
const MAX_BUFFERS: u64 = 1024;
const _: () = assert!(MAX_WRITE_ZEROES_LEN <= ZEROS_LEN as u64 * MAX_BUFFERS);

/// Aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; ZEROS_LEN]);

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file.
    IntoMemory,
    /// To the file.
    OutOfMemory,
}

/// What is left of a transfer. While it lives, its memory stays mapped and plugged; it is made and dropped on the event
/// loop, and used wherever an engine likes.
pub(super) struct Transfer {
    offset: u64,
    buffers: Vec<libc::iovec>,
    /// The first buffer that is not done.
    first: usize,
    left: u64,
    _memory: Option<CheckedMemory>,
    _pin: Pin,
}

// SAFETY: the buffers' addresses are only ever handed to the kernel, and good on every thread: `_memory` keeps the
// mapping, `_pin` its blocks, and `ZEROS` is static and never written.
unsafe impl Send for Transfer {}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at {} in {} buffers",
            self.left,
            self.offset,
            self.buffers().len()
        )
    }
}

impl Transfer {
    /// A transfer of these pieces of memory, in order, at a byte of the file. `None` if the guest does not own all of them.
    pub(super) fn new(
        memory: &CheckedMemory,
        extents: &[Extent],
        offset: u64,
        direction: Direction,
    ) -> Option<Self> {
        let access = match direction {
            Direction::IntoMemory => Permissions::Write,
            Direction::OutOfMemory => Permissions::Read,
        };
        let mut pin = Pin::default();
        let mut buffers = Vec::with_capacity(extents.len());
        for extent in extents {
            let gpa = GuestAddress(extent.gpa);
            if !memory.pin_also(&mut pin, gpa, extent.len) {
                return None;
            }
            for slice in memory.get_slices(gpa, extent.len, access).ok()? {
                let slice = slice.ok()?;
                buffers.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Some(Self {
            offset,
            left: buffers.iter().map(|buffer| buffer.iov_len as u64).sum(),
            buffers,
            first: 0,
            _memory: Some(memory.clone()),
            _pin: pin,
        })
    }

    /// A transfer of zeros to a range of at most [`MAX_WRITE_ZEROES_LEN`] bytes.
    pub(super) fn zeros(range: DiskRange) -> Self {
        let mut left = range.len.min(MAX_WRITE_ZEROES_LEN);
        let mut buffers = Vec::new();
        while left > 0 {
            let iov_len = usize::try_from(left).map_or(ZEROS_LEN, |left| left.min(ZEROS_LEN));
            buffers.push(libc::iovec {
                iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
                iov_len,
            });
            left -= iov_len as u64;
        }
        Self {
            offset: range.offset,
            buffers,
            first: 0,
            left: range.len.min(MAX_WRITE_ZEROES_LEN),
            _memory: None,
            _pin: Pin::default(),
        }
    }

    /// Where in the file it goes on.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The buffers that are not done, at an address that stays until the next [`Self::advance`].
    pub(super) fn buffers(&self) -> &[libc::iovec] {
        self.buffers.get(self.first..).unwrap_or_default()
    }

    /// Number of bytes that are not done.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes off what a system call has done.
    pub(super) fn advance(&mut self, done: u64) {
        let mut done = done.min(self.left);
        self.offset += done;
        self.left -= done;
        while let Some(buffer) = self.buffers.get_mut(self.first).filter(|_| done > 0) {
            let part = usize::try_from(done).map_or(buffer.iov_len, |done| done.min(buffer.iov_len));
            buffer.iov_base = buffer.iov_base.wrapping_byte_add(part);
            buffer.iov_len -= part;
            done -= part as u64;
            if buffer.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}
