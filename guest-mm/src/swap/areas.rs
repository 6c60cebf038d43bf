//! All swap areas: which one the next page goes to.

use alloc::vec::Vec;
use core::fmt;

use super::{AreaHeader, AreaNr, MAX_AREA_BLOCKS, MAX_AREAS, SlotError, SlotMap, SlotNr};

/// Slots that areas of the same priority are given in turn, so that what leaves together lies together and all their disks work. A power of two.
const STRIPE_SLOTS: u32 = 32;

/// Why an area cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwapOnError {
    /// There are [`MAX_AREAS`] already.
    TooMany,
    /// It has so many blocks, more than [`MAX_AREA_BLOCKS`].
    TooLarge(u32),
    /// No memory for its slots: two bytes each.
    NoMemory,
}

impl fmt::Display for SwapOnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "there are {MAX_AREAS} swap areas already"),
            Self::TooLarge(blocks) => write!(
                f,
                "a swap area of {blocks} blocks, and {MAX_AREA_BLOCKS} can be numbered"
            ),
            Self::NoMemory => f.write_str("no memory for the slots of a swap area"),
        }
    }
}

impl core::error::Error for SwapOnError {}

/// What there is of an area. Slots of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaUsage {
    /// Which one.
    pub area: AreaNr,
    /// Areas of a higher one are filled first.
    pub priority: i16,
    /// Slots that can be used.
    pub total: u32,
    /// Those that nobody uses.
    pub free: u32,
}

/// The areas in use (Linux `swap_info`, `swap_active_head`): pages go to the area of the highest priority that has a free slot; areas of the
/// same priority take turns.
#[derive(Debug, Default)]
pub struct Areas {
    areas: Vec<Area>,
    /// Numbers of the areas, in the order in which they are asked.
    order: Vec<AreaNr>,
}

#[derive(Debug)]
struct Area {
    slots: SlotMap,
    priority: i16,
}

impl Areas {
    /// One more area, whose header this is.
    ///
    /// # Errors
    /// It cannot be used; nothing has changed.
    pub fn add(&mut self, header: &AreaHeader, priority: i16) -> Result<AreaNr, SwapOnError> {
        let number = u8::try_from(self.areas.len()).ok().and_then(AreaNr::new);
        let number = number.ok_or(SwapOnError::TooMany)?;
        if header.nr_blocks > MAX_AREA_BLOCKS {
            return Err(SwapOnError::TooLarge(header.nr_blocks));
        }
        let slots = SlotMap::new(number, header).ok_or(SwapOnError::NoMemory)?;
        let reserved = (self.areas.try_reserve(1), self.order.try_reserve(1));
        let (Ok(()), Ok(())) = reserved else {
            return Err(SwapOnError::NoMemory);
        };
        self.areas.push(Area { slots, priority });
        let behind = self.behind(priority);
        self.order.insert(behind, number);
        Ok(number)
    }

    /// Where those end, in the order, that have this priority or a higher one.
    fn behind(&self, priority: i16) -> usize {
        let lower = |area: &AreaNr| self.areas[area.index()].priority < priority;
        self.order.iter().position(lower).unwrap_or(self.order.len())
    }

    /// Gives out a free slot, with one user. `None` if there is none.
    pub fn allocate(&mut self) -> Option<SlotNr> {
        let areas = &mut self.areas;
        let found = self.order.iter().enumerate().find_map(|(place, area)| {
            let slot = areas.get_mut(area.index())?.slots.allocate()?;
            Some((place, slot))
        });
        let (place, slot) = found?;
        if (slot.block() + 1).is_multiple_of(STRIPE_SLOTS) {
            let area = self.order.remove(place);
            let behind = self.behind(self.areas[area.index()].priority);
            self.order.insert(behind, area);
        }
        Some(slot)
    }

    fn map_of(&mut self, slot: SlotNr) -> Result<&mut SlotMap, SlotError> {
        let area = self.areas.get_mut(slot.area().index());
        area.map(|area| &mut area.slots).ok_or(SlotError::NotInUse(slot))
    }

    /// Users of a slot; 0 for one that there is not.
    pub fn users(&self, slot: SlotNr) -> u16 {
        let area = self.areas.get(slot.area().index());
        area.map_or(0, |area| area.slots.users(slot))
    }

    /// One more user of a slot.
    ///
    /// # Errors
    /// Nobody uses it, or too many do.
    pub fn add_user(&mut self, slot: SlotNr) -> Result<(), SlotError> {
        self.map_of(slot)?.add_user(slot)
    }

    /// Takes note of how a write to a slot went ([`SlotMap::written`]).
    pub fn written(&mut self, slot: SlotNr, has_arrived: bool) {
        if let Ok(map) = self.map_of(slot) {
            map.written(slot, has_arrived);
        }
    }

    /// One user less; returns how many are left. Without any the slot is free, or bad if it could not be written.
    ///
    /// # Errors
    /// Nobody uses it.
    pub fn drop_user(&mut self, slot: SlotNr) -> Result<u16, SlotError> {
        self.map_of(slot)?.drop_user(slot)
    }

    /// How full each area is, by number.
    pub fn usage(&self) -> impl Iterator<Item = AreaUsage> {
        let areas = self.areas.iter();
        areas.map(|area| AreaUsage {
            area: area.slots.area(),
            priority: area.priority,
            total: area.slots.nr_slots(),
            free: area.slots.nr_free(),
        })
    }

    /// The slots in use, with their users.
    pub fn in_use(&self) -> impl Iterator<Item = (SlotNr, u16)> {
        self.areas.iter().flat_map(|area| area.slots.in_use())
    }
}
