//! Frames that fail under the programs. What is in those that are about to moves, and nobody notices; of those whose contents are gone, what a disk
//! has too is read again, and the rest is lost: programs that had it end, and files tell of an error.

use std::vec::Vec;

use super::backing::Fs;
use super::memory::Process;
use super::{BLOCK, BLOCKS, Sim, count};
use crate::lru::LruList;
use crate::memory_failure::{Contents, MemoryFailureError};
use crate::mm::FilePlace;
use crate::mm::mapping::{Content, MappingKind};
use crate::pagetable::{Entry, Level};
use crate::swap::SlotNr;
use crate::{BlockIndex, Frames, Page, PageFlags, Pfn, SpaceId};

/// Most frames that are out of use at a time.
const MOST: usize = 12;
/// What is in frames that have failed: nobody may meet it.
const FAILED: u64 = 0xbad0_bad0_bad0_bad0;
const WORDS: usize = 512;
/// Frames that were there from the beginning.
const BOOT: u64 = 2048;

pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        sim.clock.sleep(1 + sim.below(120)).await;
        let Some(pfn) = some_frame(sim) else { continue };
        if sim.mm.phys.poisoned_frames().len() >= MOST {
            continue;
        }
        if sim.one_in(3) {
            if let Some(place) = lose(sim, pfn) {
                sim.read_what_is_gone(place).await;
            }
        } else {
            replace(sim, pfn);
        }
    }
}

/// Most times one that programs or files use.
fn some_frame(sim: &Sim<'_>) -> Option<Pfn> {
    let phys = sim.mm.phys;
    let nr_blocks = u64::from(BLOCK * BLOCKS);
    if sim.one_in(4) {
        let at = u32::try_from(sim.below(BOOT + nr_blocks)).unwrap();
        let in_blocks = at.checked_sub(u32::try_from(BOOT).unwrap());
        let region = phys.hotplug_region().block_range(BlockIndex(0)).unwrap();
        return Some(in_blocks.map_or(Pfn::new(at), |offset| region.start() + offset));
    }
    let mut listed: Vec<Pfn> = Vec::new();
    for zone in phys.populated_zones() {
        for list in LruList::ALL {
            let Ok(()) = phys.look_at_lru(zone, list, |pfn| {
                listed.push(pfn);
                Ok::<(), core::convert::Infallible>(())
            });
        }
    }
    let at = usize::try_from(sim.below(listed.len().max(1) as u64)).unwrap();
    let head = *listed.get(at)?;
    let nr_pages = phys.page(head)?.order().nr_pages();
    Some(head + u32::try_from(sim.below(nr_pages.into())).unwrap())
}

/// A frame is taken out of use that still has its contents.
fn replace(sim: &Sim<'_>, pfn: Pfn) {
    match sim.with_failures(|| sim.mm.soft_offline(sim.cpu, pfn)) {
        Ok(Contents::Nothing) => {}
        Ok(Contents::Moved) => count(&sim.seen.frames_replaced, 1),
        Ok(contents) => panic!("{pfn} was about to fail, and its contents are {contents:?}"),
        Err(error) => return look_at(error),
    }
    spoil(sim, pfn);
}

/// The contents of a frame are gone; where they were, if that was nowhere else.
fn lose(sim: &Sim<'_>, pfn: Pfn) -> Option<FilePlace> {
    let found = Found::at(sim, pfn);
    let mut losers = Vec::new();
    let outcome = sim.with_failures(|| sim.mm.memory_failure(sim.cpu, pfn, &mut losers));
    losers.sort_unstable();
    losers.dedup();
    let is_lost = match outcome {
        Ok(contents) => {
            let expected = match contents {
                Contents::Lost => &found.mapped_by[..],
                Contents::Moved => panic!("{pfn} has failed, and its contents were moved"),
                Contents::Nothing | Contents::OnDisk => &[],
            };
            assert_eq!(
                losers, expected,
                "who has lost something with {pfn}: {contents:?}"
            );
            spoil(sim, pfn);
            contents == Contents::Lost
        }
        // Part of it may be done.
        Err(error) => {
            look_at(error);
            assert!(losers.is_empty() || losers == found.mapped_by, "{losers:?}");
            !losers.is_empty() || found.is_gone(sim)
        }
    };
    sim.note_failure(&found.mapped_by, &losers);
    if !is_lost {
        return None;
    }
    count(&sim.seen.frames_lost, 1);
    sim.note_late_losers(&found.swapped_by);
    found.tell_model(sim);
    found.place
}

fn look_at(error: MemoryFailureError) {
    use MemoryFailureError::{AlreadyPoisoned, Busy, NoMemory, NoMemoryThere, Pinned, Unmovable};
    match error {
        Pinned { holder, .. } => {
            let known = [super::direct::HOLDER, super::registered::HOLDER, "device"];
            assert!(known.contains(&holder), "{error}");
        }
        NoMemoryThere(_) | AlreadyPoisoned(_) | Unmovable { .. } | Busy(_) | NoMemory(_) => {}
    }
}

/// Whoever still reaches the frame finds nothing that anybody has stored.
fn spoil(sim: &Sim<'_>, pfn: Pfn) {
    (0..WORDS).for_each(|word| sim.mm.frames.write(pfn, word, FAILED));
}

/// What is in a frame that is about to be lost.
struct Found {
    /// Of a mapping, and what its disk has is older, or it has none.
    place: Option<FilePlace>,
    /// Of the swap area, which does not have it like this.
    slot: Option<SlotNr>,
    /// Whose entries name it, in order, and whose name only its slot.
    mapped_by: Vec<SpaceId>,
    swapped_by: Vec<SpaceId>,
}

impl Found {
    fn at(sim: &Sim<'_>, pfn: Pfn) -> Self {
        let phys = sim.mm.phys;
        let head = phys.table.head_of(pfn);
        let page = head.and_then(|head| phys.page(head));
        let slot = page.and_then(dirty_slot);
        let of_shared = slot.and_then(|slot| shared_place(sim, slot));
        let names_frame = |entry: Entry, level: Level| {
            let nr_pages = if level == Level::PAGE { 1 } else { 512 };
            entry.is_present() && (entry.pfn()..entry.pfn() + nr_pages).contains(&pfn)
        };
        let names_slot = |entry: Entry, _| slot.is_some() && entry.swap_slot() == slot;
        Self {
            place: of_shared.or_else(|| page.and_then(|page| dirty_place(sim, page))),
            slot,
            mapped_by: who_has(sim, &names_frame),
            swapped_by: who_has(sim, &names_slot),
        }
    }

    /// It was taken from those who had it, although the frame is still in use.
    fn is_gone(&self, sim: &Sim<'_>) -> bool {
        if self.slot.is_some_and(|slot| sim.mm.swap.is_lost(slot)) {
            return true;
        }
        let Some(FilePlace { mapping, index }) = self.place.filter(|_| self.slot.is_none()) else {
            return false;
        };
        let mapping = sim.mm.mappings.find(mapping);
        let content = mapping.and_then(|mapping| mapping.lock().tree.get(index));
        !matches!(content, Some(Content::Page(_)))
    }

    fn tell_model(&self, sim: &Sim<'_>) {
        let Some(FilePlace { mapping, index }) = self.place else {
            return;
        };
        let mut files = sim.files.iter().filter(|file| !file.is_on_disk());
        if let Some(file) = files.find(|file| file.mapping == Some(mapping)) {
            count(&sim.seen.gone_for_good, 1);
            return file.lose(index);
        }
        if sim.words.lose((mapping, index)) {
            return count(&sim.seen.gone_for_good, 1);
        }
        match &sim.fs {
            Fs::Map(fs) => {
                fs.failed.borrow_mut().insert(mapping);
                sim.lost.note(mapping, index);
            }
            Fs::Page(fs) => {
                fs.has_failed.set(true);
                fs.note_one_lost(sim, mapping, index);
            }
        }
    }
}

/// The slot of a page of the swap cache that the swap area does not have like this.
fn dirty_slot(page: &Page) -> Option<SlotNr> {
    let flags = page.flags();
    let is_saved = flags.has(PageFlags::UPTODATE) && !flags.has(PageFlags::DIRTY);
    let slot = SlotNr::new(page.private()).filter(|_| flags.has(PageFlags::SWAPCACHE));
    slot.filter(|_| !is_saved)
}

/// Where a slot is that of a page of shared memory.
fn shared_place(sim: &Sim<'_>, slot: SlotNr) -> Option<FilePlace> {
    sim.mm.mapping_ids().find_map(|id| {
        let mapping = sim.mm.mappings.find(id)?;
        let state = mapping.lock();
        let mut next = Some(0);
        while let Some((index, content)) = next.and_then(|from| state.tree.first_from(from)) {
            if content == Content::Slot(slot) {
                let mapping = id;
                return Some(FilePlace { mapping, index });
            }
            next = index.checked_add(1);
        }
        None
    })
}

/// Where a page of a mapping is that no disk has like this.
fn dirty_place(sim: &Sim<'_>, page: &Page) -> Option<FilePlace> {
    if !page.flags().has(PageFlags::FILE) {
        return None;
    }
    let mapping = sim.mm.mappings.of_page(page)?;
    let has_disk = matches!(mapping.kind, MappingKind::File(_));
    let (mapping, index) = (mapping.id, page.index());
    (!has_disk || page.flags().has(PageFlags::DIRTY)).then_some(FilePlace { mapping, index })
}

/// The address spaces with an entry like this, in order.
fn who_has(sim: &Sim<'_>, is_it: &dyn Fn(Entry, Level) -> bool) -> Vec<SpaceId> {
    let spaces = sim.mm.spaces.all();
    let has = spaces
        .iter()
        .filter(|space| has_entry(sim, (space.root(), Level::ROOT), is_it));
    let mut ids: Vec<SpaceId> = has.map(|space| space.id()).collect();
    ids.sort_unstable();
    ids
}

/// Whether a table, or one below it, has an entry like this that names no table.
fn has_entry(sim: &Sim<'_>, (table, level): (Pfn, Level), is_it: &dyn Fn(Entry, Level) -> bool) -> bool {
    (0..WORDS).any(|index| {
        let entry = Entry::from_bits(sim.mm.frames.read(table, index));
        if entry.has(Entry::FIXED) || entry.is_empty() {
            return false;
        }
        if level == Level::PAGE || !entry.is_present() || entry.has(Entry::HUGE) {
            return is_it(entry, level);
        }
        has_entry(sim, (entry.pfn(), Level(level.0 - 1)), is_it)
    })
}

impl Sim<'_> {
    /// Programs that have lost something end. What others had locked in memory may be on the disk now.
    fn note_failure(&self, mapped_by: &[SpaceId], losers: &[SpaceId]) {
        let processes = self.processes.borrow();
        for process in processes
            .iter()
            .filter(|process| mapped_by.contains(&process.space))
        {
            process.has_met_failure.set(true);
        }
        for loser in losers {
            match processes.iter().find(|process| process.space == *loser) {
                Some(process) => {
                    process.has_lost.set(true);
                    process.doom();
                }
                // It is just being forked.
                None => self.unborn_losers.borrow_mut().push(*loser),
            }
        }
    }

    /// Programs that find out that something is lost when they touch it.
    fn note_late_losers(&self, losers: &[SpaceId]) {
        let processes = self.processes.borrow();
        for process in processes.iter().filter(|process| losers.contains(&process.space)) {
            process.has_met_failure.set(true);
            process.has_lost.set(true);
        }
    }

    /// A program has touched what was lost: it ends.
    pub(super) fn touches_lost(&self, process: &Process) {
        let space = process.space.number();
        assert!(process.has_lost.get(), "space {space} has lost nothing");
        count(&self.seen.touches_of_lost, 1);
        process.doom();
    }
}
