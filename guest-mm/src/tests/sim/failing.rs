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
        match sim.one_in(3) {
            true => lose(sim, pfn),
            false => replace(sim, pfn),
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

/// The contents of a frame are gone.
fn lose(sim: &Sim<'_>, pfn: Pfn) {
    let Some(found) = Found::at(sim, pfn) else {
        return;
    };
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
            !losers.is_empty() || found.has_left_its_file(sim)
        }
    };
    sim.note_failure(&found.mapped_by, &losers);
    if is_lost {
        sim.has_lost_pages.set(true);
        count(&sim.seen.frames_lost, 1);
        found.tell_model(sim);
    }
}

fn look_at(error: MemoryFailureError) {
    use MemoryFailureError::{AlreadyPoisoned, Busy, NoMemory, NoMemoryThere, Pinned, Unmovable};
    match error {
        Pinned { holder, .. } => assert!([super::direct::HOLDER, "device"].contains(&holder), "{error}"),
        NoMemoryThere(_) | AlreadyPoisoned(_) | Unmovable(_) | Busy(_) | NoMemory(_) => {}
    }
}

/// Whoever still reaches the frame finds nothing that anybody has stored.
fn spoil(sim: &Sim<'_>, pfn: Pfn) {
    (0..WORDS).for_each(|word| sim.mm.frames.write(pfn, word, FAILED));
}

/// What is in a frame that is about to be lost.
struct Found {
    /// Of a file, and the file system's own copy is older.
    dirty: Option<FilePlace>,
    /// Whose entries name it, in order.
    mapped_by: Vec<SpaceId>,
}

impl Found {
    /// `None` if the simulation has no model of what comes of its loss: shared memory is lost for good, and so is what the file system knows of
    /// itself.
    fn at(sim: &Sim<'_>, pfn: Pfn) -> Option<Self> {
        let phys = sim.mm.phys;
        let head = phys.table.head_of(pfn);
        let page = head.and_then(|head| phys.page(head));
        let mut dirty = None;
        if let Some(page) = page {
            dirty = dirty_place(sim, page)?;
        }
        let spaces = sim.mm.spaces.all();
        let ids = spaces.iter().filter(|space| {
            let root = space.root();
            is_mapped(sim, (root, Level::ROOT), pfn)
        });
        let mut mapped_by: Vec<SpaceId> = ids.map(|space| space.id()).collect();
        mapped_by.sort_unstable();
        Some(Self { dirty, mapped_by })
    }

    /// It was taken from the file, although the frame is still in use.
    fn has_left_its_file(&self, sim: &Sim<'_>) -> bool {
        let Some(FilePlace { mapping, index }) = self.dirty else {
            return false;
        };
        let mapping = sim.mm.mappings.find(mapping);
        let content = mapping.and_then(|mapping| mapping.lock().tree.get(index));
        !matches!(content, Some(Content::Page(_)))
    }

    fn tell_model(&self, sim: &Sim<'_>) {
        let Some(FilePlace { mapping, index }) = self.dirty else {
            return;
        };
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

/// Where a page of a file is that the disk does not have like this. The outer `None` is for pages that are not to be lost.
fn dirty_place(sim: &Sim<'_>, page: &Page) -> Option<Option<FilePlace>> {
    let flags = page.flags();
    if !flags.has(PageFlags::FILE) {
        let is_saved = flags.has(PageFlags::UPTODATE) && !flags.has(PageFlags::DIRTY);
        // Nobody maps it: it may be one of shared memory on its way.
        let may_be_shared = flags.has(PageFlags::SWAPCACHE) && page.mapcount() == 0;
        return (is_saved || !may_be_shared).then_some(None);
    }
    let mapping = sim.mm.mappings.of_page(page)?;
    if matches!(mapping.kind, MappingKind::Shmem) {
        return None;
    }
    if !flags.has(PageFlags::DIRTY) {
        return Some(None);
    }
    let is_known = match &sim.fs {
        Fs::Map(_) => true,
        Fs::Page(fs) => fs.mounted.name_of(mapping.id).is_some(),
    };
    let (mapping, index) = (mapping.id, page.index());
    is_known.then_some(Some(FilePlace { mapping, index }))
}

/// Whether an entry below a table names the frame.
fn is_mapped(sim: &Sim<'_>, (table, level): (Pfn, Level), pfn: Pfn) -> bool {
    (0..WORDS).any(|index| {
        let entry = Entry::from_bits(sim.mm.frames.read(table, index));
        if !entry.is_present() || entry.has(Entry::FIXED) {
            return false;
        }
        if level == Level::PAGE || entry.has(Entry::HUGE) {
            let nr_pages = if level == Level::PAGE { 1 } else { 512 };
            return (entry.pfn()..entry.pfn() + nr_pages).contains(&pfn);
        }
        is_mapped(sim, (entry.pfn(), Level(level.0 - 1)), pfn)
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
                Some(process) => process.doom(),
                // It is just being forked.
                None => self.unborn_losers.borrow_mut().push(*loser),
            }
        }
    }

    /// A program has touched what was lost: it ends.
    pub(super) fn touches_lost(&self, process: &Process) {
        assert!(self.has_lost_pages.get(), "no page was ever lost");
        count(&self.seen.touches_of_lost, 1);
        process.doom();
    }
}
