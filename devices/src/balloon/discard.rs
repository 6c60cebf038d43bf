//! From pages of the balloon to pages of the host: what can be given back, and in as few calls as possible.
//!
//! The host discards whole pages of its own, which on huge-page backings are larger than the balloon's. A page of the host
//! goes when all of it is in the balloon, or all of it was reported or hinted as free.
//!
//! Where small pages can be had but the host would split a huge page for them ([`Extent::preferred`]), the part of one that
//! a request ends with waits for the next request: Linux sends a MiB at a time, and two halves of a huge page, given back
//! one by one, cost five times as much as the whole. At most one part waits.

use virtio_wire::balloon::PAGE_SIZE;

use super::Counters;
use super::backend::{Extent, PageBackend};
use super::pages::PageSet;
use super::run::PageRun;

/// The backend, and how it is used.
#[derive(Debug)]
pub(super) struct Discarder<B> {
    backend: B,
    /// In the balloon, and not yet given back.
    waiting: Option<Waiting>,
}

/// Whether more pages are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Their neighbours may come with the next request.
    More,
    /// What is there is all there will be for now.
    Nothing,
}

/// A part of one huge page.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    part: Bytes,
    /// Where its extent ends, by which it is known.
    extent_end: u64,
}

/// Bytes from `gpa` up to `end`.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    gpa: u64,
    end: u64,
}

impl<B: PageBackend> Discarder<B> {
    pub(super) fn new(backend: B) -> Discarder<B> {
        Discarder {
            backend,
            waiting: None,
        }
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
    pub(super) fn emptied(
        &mut self,
        runs: &[PageRun],
        all: &PageSet,
        outlook: Outlook,
        counters: &mut Counters,
    ) {
        // The end of the host page that was looked at last: two runs may lie in the same one.
        let mut looked_to = 0;
        for &run in runs {
            for (piece, extent) in self.pieces(run) {
                let host_page = extent.host_page;
                if host_page == PAGE_SIZE {
                    self.join(piece, extent, outlook, counters);
                    continue;
                }
                let first = (piece.gpa - piece.gpa % host_page).max(looked_to);
                let end = piece.end.next_multiple_of(host_page);
                looked_to = end;
                self.discard_complete(Bytes { gpa: first, end }, host_page, all, counters);
            }
        }
    }

    /// What waits, if the guest still has it and it is in the balloon; else it is forgotten.
    pub(super) fn keep_waiting_if(&mut self, is_empty: impl FnOnce(PageRun) -> bool) {
        self.waiting = self
            .waiting
            .filter(|Waiting { part, .. }| PageRun::inside(part.gpa, part.end).is_some_and(is_empty));
    }

    /// Whether anything waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Gives back what waits.
    pub(super) fn flush(&mut self, counters: &mut Counters) {
        if let Some(Waiting { part, .. }) = self.waiting.take() {
            self.discard(part, counters);
        }
    }

    /// Forgets what waits: the guest has it again.
    pub(super) fn forget(&mut self) {
        self.waiting = None;
    }

    /// Gives back `piece`, together with what waits if they are neighbours; if more is to come, without the part of a huge
    /// page at the end at which it will go on.
    fn join(&mut self, piece: Bytes, extent: Extent, outlook: Outlook, counters: &mut Counters) {
        let Bytes { mut gpa, mut end } = piece;
        let mut downwards = false;
        match self.waiting.take() {
            Some(Waiting { part, extent_end }) if extent_end == extent.end && part.end == gpa => {
                gpa = part.gpa;
            }
            Some(Waiting { part, extent_end }) if extent_end == extent.end && end == part.gpa => {
                (end, downwards) = (part.end, true);
            }
            Some(Waiting { part, .. }) => self.discard(part, counters),
            None => {}
        }
        let first_whole = gpa.next_multiple_of(extent.preferred).min(end);
        let last_whole = (end - end % extent.preferred).max(gpa);
        // Both are the whole of it if it lies within one huge page.
        let (now, later) = if outlook == Outlook::Nothing {
            (gpa..end, end..end)
        } else if first_whole > gpa && (downwards || last_whole == end) {
            (first_whole..end, gpa..first_whole)
        } else {
            (gpa..last_whole, last_whole..end)
        };
        if now.start < now.end {
            let (gpa, end) = (now.start, now.end);
            self.discard(Bytes { gpa, end }, counters);
        }
        if later.start < later.end {
            let (gpa, end) = (later.start, later.end);
            self.waiting = Some(Waiting {
                part: Bytes { gpa, end },
                extent_end: extent.end,
            });
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
