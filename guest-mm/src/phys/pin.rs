//! Pins: frames that somebody reaches by physical address, so that they must stay where they are.
//!
//! Those for a transfer end soon, and are awaited by who empties their block ([`PhysicalMemory::until_unpinned`]). That they come to an end there,
//! however many transfers there are, is the pinner's part: no page of a block that is about to leave is pinned for one; it moves first
//! ([`Mm::pin_user`](crate::Mm::pin_user)). Those that are kept for as long as somebody likes keep their block.

use ::alloc::vec::Vec;
use core::fmt;

use guest_sync::Cpu;

use crate::blocks::BlockIndex;
use crate::frames::SpaceId;
use crate::mem_map::Tag;
use crate::page::{Page, PageFlags, PageState};
use crate::pfn::Pfn;
use crate::phys::PhysicalMemory;
use crate::section::Admission;

/// A held frame. Give it to [`PhysicalMemory::unpin`]; while it lives the frame neither moves nor is freed.
#[must_use = "a lost pin keeps its block plugged for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Pin {
    pfn: Pfn,
    held: Held,
}

impl Pin {
    /// The frame that was asked for.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }
}

/// For how long a page is pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinTerm {
    /// For a transfer, whose end is awaited by who empties the page's block.
    Transfer,
    /// For as long as the holder likes: its block does not leave.
    Longterm,
}

/// Who has pinned a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinnedBy {
    /// What error messages name.
    pub holder: &'static str,
    /// For how long.
    pub term: PinTerm,
}

/// Why a frame cannot be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinError {
    /// Not a page of a process: only those move at all.
    NotAnonymous(Pfn),
    /// It is being moved right now: look its address up again after the migration.
    Migrating(Pfn),
    /// Its block is about to leave: it is to move first.
    Leaving(Pfn),
    /// Its block is about to leave, and waits for the end of a transfer that has pinned it: so do those who come later.
    Awaited(Pfn),
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnonymous(pfn) => write!(f, "{pfn} is not a page of a process"),
            Self::Migrating(pfn) => write!(f, "{pfn} is being migrated"),
            Self::Leaving(pfn) => write!(f, "the block of {pfn} is about to leave"),
            Self::Awaited(pfn) => write!(f, "the block of {pfn} waits for the end of a transfer"),
        }
    }
}

impl core::error::Error for PinError {}

/// What is asked for, besides the frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PinRequest {
    pub(crate) by: PinnedBy,
    /// For which program.
    pub(crate) whose: Option<SpaceId>,
    pub(crate) on_leaving: OnLeaving,
}

/// What becomes of a request for a page of a block that is about to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnLeaving {
    /// It is refused, so that the page moves first.
    MoveFirst,
    /// It is pinned where it is: it cannot move.
    Pin,
}

/// One pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    /// First frame of the pinned chunk.
    pub(crate) head: Pfn,
    pub(crate) by: PinnedBy,
    /// For which program.
    whose: Option<SpaceId>,
}

/// All pins. They are few, so a list is searched.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    pub(crate) held: Vec<Held>,
}

impl Pins {
    /// Who holds the chunk; the one who does so for longest.
    pub(crate) fn by(&self, head: Pfn) -> Option<PinnedBy> {
        let holders = self.of(head).map(|held| held.by);
        holders.max_by_key(|by| by.term)
    }

    fn of(&self, head: Pfn) -> impl Iterator<Item = &Held> {
        self.held.iter().filter(move |held| held.head == head)
    }

    /// A page that is pinned for long, among those for which that holds.
    pub(crate) fn longterm(&self, is_there: impl Fn(Pfn) -> bool) -> Option<&Held> {
        let longterm = |held: &&Held| held.by.term == PinTerm::Longterm && is_there(held.head);
        self.held.iter().find(longterm)
    }
}

impl PhysicalMemory<'_> {
    /// Pins the page of a process that contains the frame for as long as the caller likes; `holder` is what error messages name.
    ///
    /// # Errors
    /// When the frame is not such a page, or is being moved.
    pub fn pin(&self, pfn: Pfn, holder: &'static str) -> Result<Pin, PinError> {
        let request = PinRequest {
            by: PinnedBy {
                holder,
                term: PinTerm::Longterm,
            },
            whose: None,
            on_leaving: OnLeaving::Pin,
        };
        self.pin_for(pfn, &request)
    }

    /// The program for which a page is pinned that begins with a frame, if it is for one: whose name goes with the holder's.
    pub fn pinned_for(&self, head: Pfn) -> Option<SpaceId> {
        self.pins.lock().of(head).next()?.whose
    }

    /// A page of a block that is pinned for long, by its first frame, and who is at it.
    pub fn pin_on(&self, block: BlockIndex) -> Option<(Pfn, &'static str)> {
        let range = self.hotplug_region().block_range(block)?;
        let pins = self.pins.lock();
        let held = pins.longterm(|head| range.contains(head))?;
        Some((held.head, held.by.holder))
    }

    /// Pins the page that contains the frame, as it is asked for.
    pub(crate) fn pin_for(&self, pfn: Pfn, request: &PinRequest) -> Result<Pin, PinError> {
        let not_anonymous = PinError::NotAnonymous(pfn);
        // The pins are locked first: whoever lets go of the last pin of a page and whoever sets a first one agree on
        // the flag, and whoever isolates a block finds those that were set before, and none is set after.
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
        if request.on_leaving == OnLeaving::MoveFirst && self.is_leaving_by(tag) {
            match pins.by(head).map(|by| by.term) {
                None => return Err(PinError::Leaving(pfn)),
                Some(PinTerm::Transfer) => return Err(PinError::Awaited(head)),
                // The block does not leave.
                Some(PinTerm::Longterm) => {}
            }
        }
        if !page.try_reference() {
            return Err(not_anonymous);
        }
        // Whoever took the lock meanwhile may not have seen the reference.
        if page.flags().has(PageFlags::LOCKED) {
            page.drop_reference();
            return Err(PinError::Migrating(pfn));
        }
        let PinRequest { by, whose, .. } = *request;
        let held = Held { head, by, whose };
        self.change_pins(&mut pins, (head, page, tag), |pins| pins.held.push(held));
        Ok(Pin { pfn, held })
    }

    /// Lets the frame go; a page that was unmapped meanwhile is freed now.
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn unpin(&self, cpu: &Cpu, pin: Pin) {
        let Pin { held, .. } = pin;
        let head = held.head;
        let is_awaited = {
            let mut pins = self.pins.lock();
            let (page, tag) = self.table.find(head).expect("a pinned frame stays online");
            self.change_pins(&mut pins, (head, page, tag), |pins| {
                let place = pins.held.iter().position(|known| *known == held);
                pins.held
                    .swap_remove(place.expect("a Pin is only made together with its entry"));
            });
            tag.is_isolated() && pins.by(head).is_none()
        };
        self.put_page(cpu, head);
        if is_awaited {
            self.pins_ended.wake_all();
        }
    }

    /// Sleeps until no page is pinned that begins with a frame of a block that is about to leave, or until the block is in use again.
    pub async fn until_unpinned(&self, head: Pfn) {
        let is_free = || (!self.is_pin_awaited(head)).then_some(());
        self.pins_ended.until(is_free).await;
    }

    /// Whether a frame begins a page of a block that is about to leave, and the page is pinned.
    pub(crate) fn is_pin_awaited(&self, head: Pfn) -> bool {
        let found = self.table.find(head);
        found.is_some_and(|(page, tag)| page.flags().has(PageFlags::PINNED) && self.is_leaving_by(tag))
    }

    /// Whether a frame is on a block that is about to leave.
    pub(crate) fn is_leaving(&self, pfn: Pfn) -> bool {
        self.table.tags.at(pfn).is_some_and(|tag| self.is_leaving_by(tag))
    }

    fn is_leaving_by(&self, tag: Tag) -> bool {
        // A pageblock may be withdrawn for itself.
        tag.is_isolated() && {
            let areas = self.zone_at(tag.zone()).areas.lock();
            let section = areas.section(tag.section());
            section.is_some_and(|section| section.admission == Admission::Isolated)
        }
    }

    /// Changes the pins of a page, and what is known of them in its descriptor and its section.
    fn change_pins(
        &self,
        pins: &mut Pins,
        (head, page, tag): (Pfn, &Page, Tag),
        change: impl FnOnce(&mut Pins),
    ) {
        let counted = |pins: &Pins| pins.by(head).map(|by| by.term);
        let before = counted(pins);
        change(pins);
        let after = counted(pins);
        if before == after {
            return;
        }
        match after {
            Some(_) => page.add_flags(PageFlags::PINNED),
            None => page.remove_flags(PageFlags::PINNED),
        }
        let mut areas = self.zone_at(tag.zone()).areas.lock();
        let section = areas
            .section_mut(tag.section())
            .expect("a page in use keeps its section");
        let is_pinned = |term: Option<PinTerm>| u32::from(term.is_some());
        let is_longterm = |term| u32::from(term == Some(PinTerm::Longterm));
        section.pinned_chunks = section.pinned_chunks - is_pinned(before) + is_pinned(after);
        section.longterm_chunks = section.longterm_chunks - is_longterm(before) + is_longterm(after);
    }
}
