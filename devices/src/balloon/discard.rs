//! From pages of the balloon to pages of the host: what can be given back, and in as few calls as possible.
//!
//! The host discards whole pages of its own, which on huge-page backings are larger than the balloon's. A page of the host
//! goes when all of it is in the balloon, or all of it was reported or hinted as free.

use virtio_wire::balloon::PAGE_SIZE;

use super::Counters;
use super::backend::{Extent, PageBackend};
use super::pages::PageSet;
use super::run::PageRun;

/// The backend, and how it is used.
#[derive(Debug)]
pub(super) struct Discarder<B> {
    backend: B,
}

/// Bytes from `gpa` up to `end`.
#[derive(Clone, Copy)]
struct Bytes {
    gpa: u64,
    end: u64,
}

impl<B: PageBackend> Discarder<B> {
    pub(super) fn new(backend: B) -> Discarder<B> {
        Discarder { backend }
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    /// Pages that are free, whatever is around them. `runs` go from the lowest up and do not touch.
    pub(super) fn free(&mut self, runs: &[PageRun], counters: &mut Counters) {
        for &run in runs {
            for (piece, extent) in self.pieces(run) {
                let gpa = piece.gpa.next_multiple_of(extent.host_page);
                let end = piece.end - piece.end % extent.host_page;
                if gpa < end {
                    self.discard(Bytes { gpa, end }, counters);
                }
            }
        }
    }

    /// Pages that have come into the balloon, which now holds `all`. `runs` go from the lowest up and do not touch.
    pub(super) fn emptied(&mut self, runs: &[PageRun], all: &PageSet, counters: &mut Counters) {
        // The end of the host page that was looked at last: two runs may lie in the same one.
        let mut looked_to = 0;
        for &run in runs {
            for (piece, Extent { host_page, .. }) in self.pieces(run) {
                if host_page == PAGE_SIZE {
                    self.discard(piece, counters);
                    continue;
                }
                let first = (piece.gpa - piece.gpa % host_page).max(looked_to);
                let end = piece.end.next_multiple_of(host_page);
                looked_to = end;
                self.discard_complete(Bytes { gpa: first, end }, host_page, all, counters);
            }
        }
    }

    /// Those pages of the host in `range` that are in the balloon as a whole, neighbours in one call.
    fn discard_complete(&mut self, range: Bytes, host_page: u64, all: &PageSet, counters: &mut Counters) {
        let mut found: Option<Bytes> = None;
        let mut gpa = range.gpa;
        while gpa < range.end {
            let end = gpa + host_page;
            if PageRun::inside(gpa, end).is_some_and(|run| all.contains_all(run)) {
                let gpa = found.map_or(gpa, |found| found.gpa);
                found = Some(Bytes { gpa, end });
            } else if let Some(found) = found.take() {
                self.discard(found, counters);
            }
            gpa = end;
        }
        if let Some(found) = found {
            self.discard(found, counters);
        }
    }

    /// A run, cut where extents end. What the host backs with nothing is left out.
    fn pieces(&self, run: PageRun) -> Vec<(Bytes, Extent)> {
        let mut pieces = Vec::new();
        let mut gpa = run.gpa();
        while gpa < run.end_gpa() {
            // An extent that does not go on is a backend's error, and must not become an endless loop.
            let Some(extent) = self.backend.extent_at(gpa).filter(|extent| extent.end > gpa) else {
                break;
            };
            let end = extent.end.min(run.end_gpa());
            pieces.push((Bytes { gpa, end }, extent));
            gpa = end;
        }
        pieces
    }

    fn discard(&mut self, Bytes { gpa, end }: Bytes, counters: &mut Counters) {
        match self.backend.discard(gpa, end - gpa) {
            Ok(()) => counters.discarded += end - gpa,
            Err(_) => counters.discard_failures += 1,
        }
    }
}
