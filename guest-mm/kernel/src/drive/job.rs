//! One request on its way: cut to what the driver takes at a time, one piece after the other.

use super::{BLOCK_SECTORS, Done};
use alloc::vec::Vec;
use guest_mm::disk::{BlockNr, IoError, Request};
use guest_mm::pfn::{PAGE_SIZE, Pfn};
use guest_virtio::block::{BlockError, DiskInfo, Operation};
use guest_virtio::dma::Gpa;
use guest_virtio::queue::Segment;

/// How often a job is begun again that the disk has forgotten.
const MOST_LOST: u8 = 3;

/// A request, and how far it is.
pub struct Job {
    request: Request,
    done: Done,
    /// Pages that are done.
    at: usize,
    /// Pages of the piece that was made last.
    piece: usize,
    /// How often the disk has forgotten it.
    lost: u8,
}

/// What the driver is asked: the longest beginning of the rest of a request that it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// What is to be done.
    pub operation: Operation,
    /// Where it begins.
    pub sector: u64,
    /// The memory: frames that follow each other are one segment.
    pub data: Vec<Segment>,
}

impl Job {
    pub(super) fn new(request: Request, done: Done) -> Self {
        Self {
            request,
            done,
            at: 0,
            piece: 0,
            lost: 0,
        }
    }

    /// What was asked.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// What the driver of such a disk is to do next for it. `None` if that is nothing that it could be asked: there is no block of that
    /// number, or the disk takes less than a page at a time.
    pub fn next_piece(&mut self, info: &DiskInfo) -> Option<Piece> {
        let operation = match self.request {
            Request::Read(..) => Operation::Read,
            Request::Write(..) => Operation::Write,
            Request::Flush => Operation::Flush,
        };
        let Some((first, pages)) = self.request.transfer() else {
            return Some(Piece {
                operation,
                sector: 0,
                data: Vec::new(),
            });
        };
        let BlockNr(first) = first;
        let block = first.checked_add(self.at as u64)?;
        let (data, nr_pages) = segments(pages.get(self.at..)?, info);
        self.piece = nr_pages;
        (nr_pages > 0).then_some(Piece {
            operation,
            sector: block.checked_mul(BLOCK_SECTORS)?,
            data,
        })
    }

    /// The driver is done with the piece: whoever waits is told, or the job is to go on.
    pub fn end_piece(mut self, result: Result<(), BlockError>) -> Option<Self> {
        match result {
            Ok(()) => {
                self.at += self.piece;
                let total = self.request.transfer().map_or(0, |(_, pages)| pages.len());
                if self.at < total {
                    return Some(self);
                }
                (self.done)(Ok(()));
                None
            }
            Err(BlockError::Lost) if self.lost < MOST_LOST => {
                self.lost += 1;
                Some(self)
            }
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    /// It cannot be done.
    pub fn fail(self) {
        (self.done)(Err(IoError));
    }
}

/// The segments of as many of `pages` as such a disk takes in one request, and how many those are.
fn segments(pages: &[Pfn], info: &DiskInfo) -> (Vec<Segment>, usize) {
    let page = u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX);
    let most = info.max_segment_len / page * page;
    let mut data: Vec<Segment> = Vec::new();
    if most == 0 {
        return (data, 0);
    }
    for (index, pfn) in pages.iter().enumerate() {
        if let Some(last) = data.last_mut()
            && last.start.raw() + u64::from(last.len) == pfn.gpa()
            && last.len <= most - page
        {
            last.len += page;
            continue;
        }
        if data.len() == usize::from(info.max_segments) {
            return (data, index);
        }
        let start = Gpa::new(pfn.gpa());
        data.push(Segment { start, len: page });
    }
    (data, pages.len())
}
