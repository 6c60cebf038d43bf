//! Which address spaces may map an anonymous page (Linux `anon_vma`): the way back from the page to its entries.

use alloc::vec::Vec;
use core::num::NonZeroU32;

use guest_sync::SpinLock;

use crate::frames::SpaceId;

/// Number of an `anon_vma`. Never 0; reused after the last area that had it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AnonVmaId(pub(crate) NonZeroU32);

impl AnonVmaId {
    /// The number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Where an anonymous page is mapped, whoever maps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnonPlace {
    /// Leads to the address spaces.
    pub anon_vma: AnonVmaId,
    /// The virtual address, the same in all of them.
    pub va: u64,
}

/// All of them. Locked after an address space.
#[derive(Debug, Default)]
pub(crate) struct AnonVmas {
    all: SpinLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Address spaces that have areas with it, by number; without any, the number is vacant.
    members: Vec<Vec<SpaceId>>,
    vacant: Vec<AnonVmaId>,
}

impl AnonVmas {
    /// A new one for an area of an address space.
    pub(crate) fn create(&self, space: SpaceId) -> AnonVmaId {
        let mut all = self.all.lock();
        let id = all.vacant.pop().unwrap_or_else(|| {
            all.members.push(Vec::new());
            let number = u32::try_from(all.members.len()).ok().and_then(NonZeroU32::new);
            AnonVmaId(number.expect("every anon_vma has a page, and pages are counted in 32 bits"))
        });
        all.members[id.index()].push(space);
        id
    }

    /// An address space that was not a member has got its first area with it.
    pub(crate) fn join(&self, id: AnonVmaId, space: SpaceId) {
        self.all.lock().members[id.index()].push(space);
    }

    /// The last area of an address space with it is gone.
    pub(crate) fn leave(&self, id: AnonVmaId, space: SpaceId) {
        let mut all = self.all.lock();
        let members = &mut all.members[id.index()];
        members.retain(|&member| member != space);
        if members.is_empty() {
            all.vacant.push(id);
        }
    }

    /// The address spaces, into a vector that is emptied first.
    pub(crate) fn members_into(&self, id: AnonVmaId, members: &mut Vec<SpaceId>) {
        members.clear();
        let all = self.all.lock();
        members.extend(all.members.get(id.index()).into_iter().flatten());
    }

    /// Every pair of number and address space.
    pub(crate) fn pairs(&self) -> Vec<(AnonVmaId, SpaceId)> {
        let all = self.all.lock();
        let numbered = (1..).filter_map(NonZeroU32::new).zip(&all.members);
        let pairs = numbered
            .flat_map(|(number, members)| members.iter().map(move |&member| (AnonVmaId(number), member)));
        pairs.collect()
    }
}
