//! Pages of mappings on the move: what is known of them and what the file system has on them goes along, and nothing is written for it.

use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::mm::mapping::{Content, MappingKind, private_page};
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Whether nobody objects to the move of a page whose lock the caller has.
    pub(super) fn may_move(&self, pfn: Pfn, page: &Page) -> bool {
        let Some(mapping) = self.mappings.of_page(page) else {
            return true;
        };
        match (&mapping.kind, private_page(mapping.id, pfn, page)) {
            (MappingKind::File(ops), Some(private)) => ops.is_movable(private),
            _ => true,
        }
    }

    /// The new page takes the old one's place in its mapping. Both are locked; who finds the new one waits until all is done.
    pub(super) fn arrive_in_mapping(&self, from: &Page, from_pfn: Pfn, to: &Page, to_pfn: Pfn) {
        let mapping = self.mappings.of_page(from);
        let mapping =
            mapping.expect("a mapping with pages is not removed, and the page lock keeps this one in it");
        to.set_mapping(from.mapping());
        to.set_index(from.index());
        to.set_age(from.age());
        let mut flags = PageFlags::FILE;
        for flag in [
            PageFlags::DIRTY,
            PageFlags::UPTODATE,
            PageFlags::ERROR,
            PageFlags::REFERENCED,
            PageFlags::MLOCKED,
        ] {
            if from.flags().has(flag) {
                flags = flags.with(flag);
            }
        }
        if let (MappingKind::File(ops), Some(private)) =
            (&mapping.kind, private_page(mapping.id, from_pfn, from))
        {
            to.set_private(ops.migrate_page(private, to_pfn));
            flags = flags.with(PageFlags::PRIVATE);
        }
        to.add_flags(flags);
        let mut state = mapping.lock();
        let replaced = state.tree.replace(from.index(), Content::Page(to_pfn));
        debug_assert_eq!(replaced, Some(Content::Page(from_pfn)));
    }
}
