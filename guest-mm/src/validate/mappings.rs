//! Mappings: every page in a tree says so, every dirty one is found by write-back, and the counters are those of the pages.

use alloc::vec::Vec;

use crate::frames::{Frames, Mmu};
use crate::mm::mapping::{Content, Mapping};
use crate::mm::{Layout, Mm, Prot, Sharing, Vma};
use crate::page::{Page, PageFlags};
use crate::pagetable::Entry;
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
        let mut listed = Vec::new();
        for mapping in self.mappings.all() {
            let state = mapping.lock();
            let mut has_dirty = false;
            listed.extend(state.members.iter().map(|&space| (mapping.id, space)));
            for (index, content) in state.tree.iter() {
                match content {
                    Content::Lost => {}
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
        all.members.sort_unstable();
        ensure!(
            listed == all.members,
            "mappings: {listed:?} are listed as members, {:?} are",
            all.members
        );
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

    /// An entry that maps a page of a mapping: the right one, with no more rights than its area has, and none to store to a page
    /// that write-back would not find.
    pub(super) fn validate_file_leaf(
        &self,
        vma: &Vma,
        entry: Entry,
        (va, pfn, page): (u64, Pfn, &Page),
        tally: &mut Tally,
    ) -> Result<(), Invalid> {
        let flags = page.flags();
        let area = vma.backing.file();
        let area = area.ok_or_else(|| Invalid(alloc::format!("{va:#x}: {pfn} in {vma:?}")))?;
        let is_there = area.layout == Layout::NonLinear || vma.va_of_page(area, page.index()) == Some(va);
        ensure!(
            page.mapping() == area.mapping.number() && is_there && flags.has(PageFlags::UPTODATE),
            "{va:#x} of {vma:?}: {pfn} is {page:?}"
        );
        let rights = Entry::USER | Entry::NO_EXECUTE;
        ensure!(
            entry.bits() & rights == vma.prot.leaf_bits() & rights,
            "{va:#x}: {entry:?} with {:?}",
            vma.prot
        );
        let mapping = self.mappings.of_page(page);
        let is_memory = mapping.as_ref().is_some_and(|mapping| !mapping.kind.is_file());
        let may_write = area.sharing == Sharing::Shared
            && vma.prot.has(Prot::WRITE)
            && (is_memory || flags.has(PageFlags::DIRTY));
        ensure!(
            !entry.has(Entry::WRITABLE) || may_write,
            "{va:#x}: {entry:?} is writable, {vma:?}, {page:?}"
        );
        ensure!(
            flags.has(PageFlags::LOCKED) == entry.is_migration(),
            "{va:#x}: {pfn} is {page:?}"
        );
        tally.migrating += u32::from(entry.is_migration());
        tally.mapped += 1;
        *tally.entries.entry(pfn).or_insert(0) += 1;
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
        let is_file = mapping.kind.is_file();
        ensure!(
            !mapping.kind.is_ram() || flags.has(PageFlags::MLOCKED),
            "{pfn} has no place but memory, and reclaim looks at it: {page:?}"
        );
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
