//! All address spaces by number.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use guest_sync::SpinLock;

use crate::frames::SpaceId;
use crate::mm::AddressSpace;

/// The table of address spaces. Locked after an address space.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    places: SpinLock<Vec<Place>>,
}

#[derive(Debug)]
enum Place {
    Vacant,
    /// The number is taken, and nobody can find the address space yet or any more.
    Reserved,
    Taken(Arc<AddressSpace>),
}

impl Spaces {
    /// The address space, if it exists.
    pub(crate) fn find(&self, id: SpaceId) -> Option<Arc<AddressSpace>> {
        match self.places.lock().get(index(id))? {
            Place::Taken(space) => Some(space.clone()),
            Place::Vacant | Place::Reserved => None,
        }
    }

    /// A number for a new address space.
    pub(crate) fn reserve(&self) -> SpaceId {
        let mut places = self.places.lock();
        let vacant = places.iter().position(|place| matches!(place, Place::Vacant));
        let index = vacant.unwrap_or(places.len());
        if vacant.is_none() {
            places.push(Place::Reserved);
        } else {
            places[index] = Place::Reserved;
        }
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        SpaceId(number.expect("every space holds a frame of its own, and frames are counted in 32 bits"))
    }

    /// From now on the address space can be found.
    pub(crate) fn insert(&self, space: Arc<AddressSpace>) {
        let index = index(space.id());
        self.places.lock()[index] = Place::Taken(space);
    }

    /// The number is free for another one.
    pub(crate) fn release(&self, id: SpaceId) {
        let place = core::mem::replace(&mut self.places.lock()[index(id)], Place::Vacant);
        drop(place);
    }

    /// All address spaces.
    pub(crate) fn all(&self) -> Vec<Arc<AddressSpace>> {
        let places = self.places.lock();
        let taken = places.iter().filter_map(|place| match place {
            Place::Taken(space) => Some(space.clone()),
            Place::Vacant | Place::Reserved => None,
        });
        taken.collect()
    }
}

const fn index(id: SpaceId) -> usize {
    id.number() as usize - 1
}
