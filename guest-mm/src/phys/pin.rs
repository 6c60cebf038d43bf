//! Pins: frames that somebody reaches by physical address, so that they must stay where they are.

use alloc::vec::Vec;
use core::fmt;

use crate::page::{PageFlags, PageState};
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;

/// A held frame. Give it to [`PhysicalMemory::unpin`]; while it lives the frame neither moves nor is freed.
#[must_use = "a lost pin keeps its block plugged for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Pin {
    pfn: Pfn,
    head: Pfn,
    holder: &'static str,
}

impl Pin {
    /// The frame that was asked for.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }
}

/// Why a frame cannot be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinError {
    /// Not a page of a process: only those move at all.
    NotAnonymous(Pfn),
    /// It is being moved right now: look its address up again after the migration.
    Migrating(Pfn),
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnonymous(pfn) => write!(f, "{pfn} is not a page of a process"),
            Self::Migrating(pfn) => write!(f, "{pfn} is being migrated"),
        }
    }
}

impl core::error::Error for PinError {}

/// All pins, by the head of the pinned chunk. Pins are few, so a list is searched.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    pub(crate) held: Vec<(Pfn, &'static str)>,
}

impl Pins {
    /// Somebody who holds the chunk.
    pub(crate) fn holder(&self, head: Pfn) -> Option<&'static str> {
        self.held
            .iter()
            .find(|(held, _)| *held == head)
            .map(|&(_, holder)| holder)
    }
}

impl PhysicalMemory {
    /// Pins the page of a process that contains the frame; `holder` is what error messages name.
    ///
    /// # Errors
    /// When the frame is not such a page, or is being moved.
    pub fn pin(&mut self, pfn: Pfn, holder: &'static str) -> Result<Pin, PinError> {
        let (id, offset) = self.map.locate(pfn).ok_or(PinError::NotAnonymous(pfn))?;
        let section = self.map.section_mut(id);
        let offset = section.head_of(offset);
        let head = section.pfn(offset);
        let page = &mut section.pages[offset as usize];
        if page.state != PageState::Allocated || !page.flags.has(PageFlags::ANON) {
            return Err(PinError::NotAnonymous(pfn));
        }
        if page.flags.has(PageFlags::LOCKED) {
            return Err(PinError::Migrating(pfn));
        }
        page._count += 1;
        if !page.flags.has(PageFlags::PINNED) {
            page.flags = page.flags.with(PageFlags::PINNED);
            section.pinned_chunks += 1;
        }
        self.pins.held.push((head, holder));
        Ok(Pin { pfn, head, holder })
    }

    /// Lets the frame go; a page that was unmapped meanwhile is freed now.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn unpin(&mut self, pin: Pin) {
        let Pin { head, holder, .. } = pin;
        let place = self.pins.held.iter().position(|held| *held == (head, holder));
        self.pins
            .held
            .swap_remove(place.expect("a Pin is only made together with its entry"));
        if self.pins.holder(head).is_none() {
            let (id, offset) = self.map.locate(head).expect("a pinned frame stays online");
            let section = self.map.section_mut(id);
            section.pinned_chunks -= 1;
            let page = &mut section.pages[offset as usize];
            page.flags = page.flags.without(PageFlags::PINNED);
        }
        self.put_page(head);
    }

    /// Drops one reference to a chunk, and frees it with the last.
    pub(crate) fn put_page(&mut self, head: Pfn) {
        let (id, offset) = self.map.locate(head).expect("a referenced frame stays online");
        let page = &mut self.map.section_mut(id).pages[offset as usize];
        page._count -= 1;
        if page._count > 0 {
            return;
        }
        let order = page.order();
        if page.flags.has(PageFlags::ANON) {
            self.stats.nr_anon_pages -= u64::from(order.nr_pages());
            self.stats.nr_anon_transparent_hugepages -= u64::from(order == Order::PAGEBLOCK);
        }
        self.stats.pgfree += u64::from(order.nr_pages());
        self.change(id, |section| section.give(offset, order));
    }
}
