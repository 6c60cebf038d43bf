//! Pins: frames that somebody reaches by physical address, so that they must stay where they are.

use ::alloc::vec::Vec;
use core::fmt;

use guest_sync::Cpu;

use crate::blocks::BlockIndex;
use crate::frames::SpaceId;
use crate::mem_map::Tag;
use crate::page::{PageFlags, PageState};
use crate::pfn::Pfn;
use crate::phys::PhysicalMemory;

/// A held frame. Give it to [`PhysicalMemory::unpin`]; while it lives the frame neither moves nor is freed.
#[must_use = "a lost pin keeps its block plugged for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Pin {
    pfn: Pfn,
    head: Pfn,
    held: Held,
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

/// One pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// First frame of the pinned chunk.
    pub(crate) head: Pfn,
    /// Who is at it.
    pub(crate) holder: &'static str,
    /// For which program.
    whose: Option<SpaceId>,
}

/// All pins. They are few, so a list is searched.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    pub(crate) held: Vec<Held>,
}

impl Pins {
    /// Somebody who holds the chunk.
    pub(crate) fn holder(&self, head: Pfn) -> Option<&'static str> {
        self.of(head).map(|held| held.holder)
    }

    fn of(&self, head: Pfn) -> Option<&Held> {
        self.held.iter().find(|held| held.head == head)
    }
}

impl PhysicalMemory<'_> {
    /// Pins the page of a process that contains the frame; `holder` is what error messages name.
    ///
    /// # Errors
    /// When the frame is not such a page, or is being moved.
    pub fn pin(&self, pfn: Pfn, holder: &'static str) -> Result<Pin, PinError> {
        self.pin_for(pfn, holder, None)
    }

    /// The program for which a page is pinned that begins with a frame, if it is for one: whose name goes with the holder's.
    pub fn pinned_for(&self, head: Pfn) -> Option<SpaceId> {
        self.pins.lock().of(head)?.whose
    }

    /// A page of a block that is pinned, by its first frame, and who is at it.
    pub fn pin_on(&self, block: BlockIndex) -> Option<(Pfn, &'static str)> {
        let range = self.hotplug_region().block_range(block)?;
        let pins = self.pins.lock();
        let held = pins.held.iter().find(|held| range.contains(held.head))?;
        Some((held.head, held.holder))
    }

    /// As [`PhysicalMemory::pin`], for a program.
    pub(crate) fn pin_for(
        &self,
        pfn: Pfn,
        holder: &'static str,
        whose: Option<SpaceId>,
    ) -> Result<Pin, PinError> {
        let not_anonymous = PinError::NotAnonymous(pfn);
        // The pins are locked first: whoever lets go of the last pin of a page and whoever sets a first one agree on
        // the flag.
        let mut pins = self.pins.lock();
        let head = self.table.head_of(pfn).ok_or(not_anonymous)?;
        let (page, tag) = self.table.find(head).ok_or(not_anonymous)?;
        let flags = page.flags();
        if page.state() != PageState::Allocated || !flags.has(PageFlags::ANON) {
            return Err(not_anonymous);
        }
        if flags.has(PageFlags::LOCKED) {
            return Err(PinError::Migrating(pfn));
        }
        if !page.try_reference() {
            return Err(not_anonymous);
        }
        // Whoever took the lock meanwhile may not have seen the reference.
        if page.flags().has(PageFlags::LOCKED) {
            page.drop_reference();
            return Err(PinError::Migrating(pfn));
        }
        if !flags.has(PageFlags::PINNED) {
            page.add_flags(PageFlags::PINNED);
            self.count_pinned(tag, |pinned_chunks| pinned_chunks + 1);
        }
        let held = Held { head, holder, whose };
        pins.held.push(held);
        Ok(Pin { pfn, head, held })
    }

    /// Lets the frame go; a page that was unmapped meanwhile is freed now.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn unpin(&self, cpu: &Cpu, pin: Pin) {
        let Pin { head, held, .. } = pin;
        {
            let mut pins = self.pins.lock();
            let place = pins.held.iter().position(|known| *known == held);
            pins.held
                .swap_remove(place.expect("a Pin is only made together with its entry"));
            if pins.holder(head).is_none() {
                let (page, tag) = self.table.find(head).expect("a pinned frame stays online");
                self.count_pinned(tag, |pinned_chunks| pinned_chunks - 1);
                page.remove_flags(PageFlags::PINNED);
            }
        }
        self.put_page(cpu, head);
    }

    fn count_pinned(&self, tag: Tag, change: impl FnOnce(u32) -> u32) {
        let mut areas = self.zone_at(tag.zone()).areas.lock();
        let section = areas
            .section_mut(tag.section())
            .expect("a page in use keeps its section");
        section.pinned_chunks = change(section.pinned_chunks);
    }
}
