//! All mappings by number: made, found, removed.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use guest_sync::SpinLock;

use super::{Content, FileError, Mapping, MappingId, MappingKind};
use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::Mm;
use crate::page::{Page, PageFlags};

/// The table of mappings. Locked after an address space, and alone.
#[derive(Debug, Default)]
pub(crate) struct Mappings {
    places: SpinLock<Vec<Option<Arc<Mapping>>>>,
}

impl Mappings {
    /// The mapping, if it exists.
    pub(crate) fn find(&self, id: MappingId) -> Option<Arc<Mapping>> {
        self.places.lock().get(place_of(id)?)?.clone()
    }

    /// The mapping of a page.
    pub(crate) fn of_page(&self, page: &Page) -> Option<Arc<Mapping>> {
        self.find(id_of(page)?)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Mapping>> {
        self.places.lock().iter().flatten().cloned().collect()
    }

    fn create(&self, kind: MappingKind, size: u64) -> MappingId {
        let mut places = self.places.lock();
        let vacant = places.iter().position(Option::is_none);
        let place = vacant.unwrap_or(places.len());
        let number = u32::try_from(place + 1).ok().and_then(NonZeroU32::new);
        let id =
            MappingId(number.expect("a mapping takes more than a byte, and memory is counted in 44 bits"));
        let mapping = Some(Arc::new(Mapping::new(id, kind, size)));
        match places.get_mut(place) {
            Some(vacant) => *vacant = mapping,
            None => places.push(mapping),
        }
        id
    }

    /// An address space is going to have its first area of the mapping. False if there is no such mapping.
    pub(crate) fn join(&self, id: MappingId, space: SpaceId) -> bool {
        let join = |mapping: Arc<Mapping>| {
            let mut state = mapping.lock();
            if !state.has_ended {
                state.members.insert(space);
            }
            !state.has_ended
        };
        self.find(id).is_some_and(join)
    }

    /// The address spaces that have areas of a mapping, into a vector that is emptied first.
    pub(crate) fn members_into(&self, id: MappingId, members: &mut Vec<SpaceId>) {
        members.clear();
        if let Some(mapping) = self.find(id) {
            members.extend(&mapping.lock().members);
        }
    }

    /// The last area that an address space had of the mapping is gone.
    pub(crate) fn leave(&self, id: MappingId, space: SpaceId) {
        let Some(mapping) = self.find(id) else { return };
        let mut state = mapping.lock();
        state.members.remove(&space);
        let is_unmapped = state.members.is_empty();
        drop(state);
        if is_unmapped {
            mapping.unmapped.wake_all();
        }
    }
}

/// The number of a page's mapping.
pub(crate) fn id_of(page: &Page) -> Option<MappingId> {
    let is_file = page.flags().has(PageFlags::FILE);
    NonZeroU32::new(page.mapping()).filter(|_| is_file).map(MappingId)
}

/// What a mapping has in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheUse {
    /// Of a file; otherwise shared memory.
    pub is_file: bool,
    /// Bytes of the file.
    pub size: u64,
    /// Pages in memory.
    pub pages: u64,
    /// Those of them that are newer than the disk.
    pub dirty: u64,
    /// Those on their way to the disk.
    pub writeback: u64,
    /// Pages of shared memory that are in the swap area.
    pub swapped: u64,
    /// Address spaces that have areas of it.
    pub spaces: u64,
}

fn place_of(id: MappingId) -> Option<usize> {
    usize::try_from(id.number() - 1).ok()
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// A new mapping without pages, of a file of `size` bytes.
    pub fn create_mapping(&self, kind: MappingKind, size: u64) -> MappingId {
        self.mappings.create(kind, size)
    }

    /// Removes a mapping that has no pages and that no area maps: after [`Mm::truncate`] to 0 and [`Mm::until_unmapped`].
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub fn remove_mapping(&self, id: MappingId) -> Result<(), FileError> {
        let mapping = self.mapping(id)?;
        {
            let mut state = mapping.lock();
            if !state.tree.is_empty() || !state.members.is_empty() {
                return Err(FileError::InUse(id));
            }
            state.has_ended = true;
        }
        if let Some(place) = place_of(id) {
            let removed = self.mappings.places.lock().get_mut(place).and_then(Option::take);
            drop(removed);
        }
        Ok(())
    }

    /// Bytes of the mapping's file. `None` if there is no such mapping.
    pub fn mapping_size(&self, id: MappingId) -> Option<u64> {
        Some(self.mappings.find(id)?.lock().size)
    }

    /// Whether an area of any address space maps it.
    pub fn is_mapped(&self, id: MappingId) -> bool {
        let mapping = self.mappings.find(id);
        mapping.is_some_and(|mapping| !mapping.lock().members.is_empty())
    }

    /// Sleeps until no area maps it, or there is no such mapping.
    pub async fn until_unmapped(&self, id: MappingId) {
        if let Some(mapping) = self.mappings.find(id) {
            let is_unmapped = || mapping.lock().members.is_empty().then_some(());
            mapping.unmapped.until(is_unmapped).await;
        }
    }

    /// Numbers of all mappings.
    pub fn mapping_ids(&self) -> impl Iterator<Item = MappingId> {
        self.mappings.all().into_iter().map(|mapping| mapping.id)
    }

    /// Pages of a mapping that are in memory.
    pub fn cached_pages(&self, id: MappingId) -> u64 {
        let mapping = self.mappings.find(id);
        mapping.map_or(0, |mapping| {
            let state = mapping.lock();
            let pages = state.tree.iter();
            pages
                .filter(|(_, content)| matches!(content, Content::Page(_)))
                .count() as u64
        })
    }

    /// What a mapping has in memory. `None` if there is no such mapping.
    pub fn cache_use(&self, id: MappingId) -> Option<CacheUse> {
        let mapping = self.mappings.find(id)?;
        let state = mapping.lock();
        let mut found = CacheUse {
            is_file: mapping.kind.is_file(),
            size: state.size,
            pages: 0,
            dirty: 0,
            writeback: 0,
            swapped: 0,
            spaces: state.members.len() as u64,
        };
        for (_, content) in state.tree.iter() {
            let pfn = match content {
                Content::Page(pfn) => pfn,
                Content::Slot(_) => {
                    found.swapped += 1;
                    continue;
                }
                Content::Lost => continue,
            };
            let flags = self.mapped_page(pfn).flags();
            found.pages += 1;
            found.dirty += u64::from(flags.has(PageFlags::DIRTY));
            found.writeback += u64::from(flags.has(PageFlags::WRITEBACK));
        }
        Some(found)
    }

    pub(crate) fn mapping(&self, id: MappingId) -> Result<Arc<Mapping>, FileError> {
        self.mappings.find(id).ok_or(FileError::Unknown(id))
    }
}
