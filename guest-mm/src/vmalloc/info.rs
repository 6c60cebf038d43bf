//! What the areas are, for people (Linux `/proc/vmallocinfo`) and for checks.

use core::fmt::{self, Write};

use super::{GUARD_PAGES, Kind, State, Tag, Vmalloc, kind_of, range_of, state_of};
use crate::frames::Frames;
use crate::kernel_map::KernelRange;
use crate::pfn::{PAGE_SIZE, Pfn};
use crate::vmalloc::tree::Field;

/// Nodes that [`Vmalloc::info`] tells apart.
const NR_NODES: usize = 64;

/// An area at one moment.
struct Area {
    range: KernelRange,
    kind: Kind,
    state: State,
    tag: Tag,
}

impl Vmalloc {
    /// Writes one line for each area, by address, as `/proc/vmallocinfo`: addresses and bytes with the guard page, who
    /// asked for it, number of pages, kind, and pages on each node. `node_of` says on which node a frame is.
    ///
    /// No lock is held while something is written: areas that come or go meanwhile may be missing.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn info(
        &self,
        out: &mut impl Write,
        frames: &impl Frames,
        node_of: impl Fn(Pfn) -> usize,
    ) -> fmt::Result {
        let mut next = self.window.start();
        while let Some(area) = self.area_from(frames, next) {
            let (start, bytes) = (area.range.start(), area.range.bytes() + GUARD_PAGES * PAGE_SIZE);
            next = start + bytes;
            write!(out, "{start:#018x}-{next:#018x} {bytes:>7}")?;
            if area.state == State::Lazy {
                writeln!(out, " unpurged vm_area")?;
                continue;
            }
            write!(out, " {} pages={}", area.tag, area.range.nr_pages())?;
            match area.kind {
                Kind::Vmalloc => out.write_str(" vmalloc")?,
                Kind::Vmap => out.write_str(" vmap")?,
            }
            for (node, nr_pages) in (0..).zip(self.pages_by_node(frames, area.range, &node_of)) {
                if nr_pages > 0 {
                    write!(out, " N{node}={nr_pages}")?;
                }
            }
            out.write_str("\n")?;
        }
        Ok(())
    }

    fn area_from(&self, frames: &impl Frames, va: u64) -> Option<Area> {
        let areas = self.areas.lock();
        let node = areas.tree.first_from(frames, va)?;
        Some(Area {
            range: range_of(frames, node),
            kind: kind_of(frames, node),
            state: state_of(frames, node),
            tag: Tag(node.get(frames, Field::Note)),
        })
    }

    fn pages_by_node(
        &self,
        frames: &impl Frames,
        range: KernelRange,
        node_of: impl Fn(Pfn) -> usize,
    ) -> [u64; NR_NODES] {
        let mut count = [0; NR_NODES];
        self.tables.change_pages(frames, range, |_, entry| {
            if !entry.is_empty() {
                count[node_of(entry.pfn()).min(NR_NODES - 1)] += 1;
            }
            None
        });
        count
    }

    /// Checks that the tree of areas is one, and that every page of the window has the entry that its area's state asks
    /// for. Nobody else may be using the window meanwhile.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn validate(&self, frames: &impl Frames) -> Result<(), WrongArea> {
        self.areas.lock().tree.validate(frames)?;
        let mut hole = self.window.start();
        let (mut used, mut lazy) = (0, 0);
        while let Some(area) = self.area_from(frames, hole) {
            self.expect(frames, (hole, area.range.start()), Expected::Nothing)?;
            let (start, end) = (area.range.start(), area.range.end());
            match (area.state, area.kind) {
                (State::Used, _) => self.expect(frames, (start, end), Expected::Present)?,
                (State::Lazy, _) => self.expect(frames, (start, end), Expected::Withdrawn)?,
                (State::Building | State::Leaving, _) => {
                    return Err(WrongArea {
                        what: "nobody is at work on this area",
                        va: start,
                    });
                }
            }
            if area.kind == Kind::Vmalloc {
                *if area.state == State::Lazy {
                    &mut lazy
                } else {
                    &mut used
                } += area.range.nr_pages();
            }
            hole = end;
        }
        self.expect(
            frames,
            (hole, hole.max(self.window.end().min(hole + (64 << 20)))),
            Expected::Nothing,
        )?;
        let stats = self.stats();
        if (stats.nr_pages, stats.nr_lazy_pages) != (used, lazy) {
            return Err(WrongArea {
                what: "the counts of pages are wrong",
                va: self.window.start(),
            });
        }
        Ok(())
    }

    fn expect(
        &self,
        frames: &impl Frames,
        (start, end): (u64, u64),
        expected: Expected,
    ) -> Result<(), WrongArea> {
        let Some(range) = KernelRange::new(start, end - start) else {
            return Ok(());
        };
        let mut wrong = None;
        self.tables.change_pages(frames, range, |va, entry| {
            let found = match (entry.is_empty(), entry.is_present()) {
                (true, _) => Expected::Nothing,
                (false, true) => Expected::Present,
                (false, false) => Expected::Withdrawn,
            };
            if found != expected {
                wrong = wrong.or(Some(WrongArea {
                    what: expected.complaint(),
                    va,
                }));
            }
            None
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// What an entry is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Nothing,
    Present,
    Withdrawn,
}

impl Expected {
    const fn complaint(self) -> &'static str {
        match self {
            Self::Nothing => "something is mapped between areas",
            Self::Present => "a page of an area in use is not mapped",
            Self::Withdrawn => "a page of a freed area is mapped, or its frame is lost",
        }
    }
}

/// What [`Vmalloc::validate`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongArea {
    /// What is wrong.
    pub what: &'static str,
    /// Where.
    pub va: u64,
}

impl fmt::Display for WrongArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vmalloc, at {:#x}: {}", self.va, self.what)
    }
}

impl core::error::Error for WrongArea {}
