//! Mappings: every page in a tree says so, every dirty one is found by write-back, and the counters are those of the pages.

use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::mm::mapping::{Content, Mapping, MappingKind};
use crate::page::PageFlags;
use crate::pfn::Pfn;
use crate::radix_tree::Tag;
use crate::validate::space::Tally;
use crate::validate::{Invalid, ensure};

/// Counted over all mappings.
#[derive(Default)]
struct Sums {
    shmem: u64,
    dirty: u64,
    writeback: u64,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Every mapping, and the counters of all. Adds the slots that trees name to those that entries name.
    pub(super) fn validate_mappings(&self, all: &mut Tally) -> Result<(), Invalid> {
        let mut sums = Sums::default();
        for mapping in self.mappings.all() {
            let state = mapping.lock();
            let mut has_dirty = false;
            for (index, content) in state.tree.iter() {
                match content {
                    Content::Slot(slot) => *all.slots.entry(slot).or_insert(0) += 1,
                    Content::Page(pfn) => {
                        let has_tag = |tag| state.tree.has_tag(index, tag);
                        has_dirty |= has_tag(Tag::Dirty);
                        self.validate_file_page(&mapping, (index, pfn), has_tag, &mut sums)?;
                        all.files += 1;
                    }
                }
            }
            let since = state.dirtied_at();
            ensure!(
                !has_dirty || since.is_some(),
                "mapping {} has dirty pages, and write-back does not know since when",
                mapping.id.number()
            );
        }
        let stats = self.phys.stats();
        let counted = (
            stats.nr_file_pages,
            stats.nr_shmem,
            stats.nr_dirty,
            stats.nr_writeback,
        );
        let found = (all.files, sums.shmem, sums.dirty, sums.writeback);
        ensure!(
            counted == found,
            "nr_file_pages, nr_shmem, nr_dirty and nr_writeback {counted:?} are {found:?}"
        );
        Ok(())
    }

    fn validate_file_page(
        &self,
        mapping: &Mapping,
        (index, pfn): (u32, Pfn),
        has_tag: impl Fn(Tag) -> bool,
        sums: &mut Sums,
    ) -> Result<(), Invalid> {
        let page = self.online_page(pfn, 0)?;
        let flags = page.flags();
        let says = (page.mapping(), page.index());
        ensure!(
            flags.has(PageFlags::FILE) && says == (mapping.id.number(), index),
            "page {index} of mapping {} is {pfn}, and that is {page:?}",
            mapping.id.number()
        );
        for (flag, tag) in [
            (PageFlags::DIRTY, Tag::Dirty),
            (PageFlags::WRITEBACK, Tag::Writeback),
        ] {
            ensure!(
                flags.has(flag) == has_tag(tag),
                "{pfn} has {flags:?} and tag {tag:?}: {}",
                has_tag(tag)
            );
        }
        ensure!(
            flags.has(PageFlags::DIRTY) || !has_tag(Tag::ToWrite),
            "{pfn} is clean and to be written"
        );
        let is_file = matches!(mapping.kind, MappingKind::File(_));
        let needs_block = flags.has(PageFlags::DIRTY) || flags.has(PageFlags::WRITEBACK);
        ensure!(
            !needs_block || is_file && flags.has(PageFlags::PRIVATE),
            "{pfn} is dirty, and write-back does not know where to: {flags:?}"
        );
        sums.shmem += u64::from(!is_file);
        sums.dirty += u64::from(flags.has(PageFlags::DIRTY));
        sums.writeback += u64::from(flags.has(PageFlags::WRITEBACK));
        Ok(())
    }
}
