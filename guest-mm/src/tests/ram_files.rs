//! Files whose pages have no place but memory: nothing takes them out of it, and their file system moves them itself.

use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use guest_sync::Cpu;

use crate::frames::Frames;
use crate::fs::mounted::{Missing, WriteAt};
use crate::fs::{TmpFile, Tmpfs};
use crate::host::{HostFrames, HostMmu};
use crate::migrate::{BatchEnd, Eviction, RefusalReason};
use crate::mm::mapping::{AddressSpaceOps, FileError};
use crate::mm::{FileArea, Sharing};
use crate::pagetable::translate;
use crate::swap::AreaHeader;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, empty_block, load, machine, store};
use crate::tests::test_fs::TestFs;
use crate::{
    Access, Backing, BlockIndex, Gfp, HugeAdvice, IsolatedBlock, LruList, MapRequest, Order, Pfn, Place,
    SpaceId, ZoneKind,
};

type Ramfs<'a, 'm> = Tmpfs<'a, 'm, HostFrames, HostMmu, &'a Cpu>;

const LIMIT: u64 = 256 * 4096;
const PAGES: u64 = 48;

/// A program with room for a file, and the file's pages mapped.
struct Program {
    id: SpaceId,
    buffer: u64,
    mapped: u64,
}

impl Program {
    fn new(mm: &TestMm<'_>, cpu: &Cpu, file: &TmpFile) -> Self {
        let id = mm.create_space(cpu, &[]).unwrap();
        let request = MapRequest {
            len: PAGES * 4096,
            place: Place::Anywhere,
            prot: RW,
            backing: Backing::File(FileArea::new(file.mapping(), 0, Sharing::Shared)),
        };
        Self {
            id,
            buffer: mm.mmap(id, &anonymous(MIB, HugeAdvice::NoHuge)).unwrap(),
            mapped: mm.mmap(id, &request).unwrap(),
        }
    }

    /// Writes `bytes` at an offset of a file.
    fn write(&self, fs: &TestFs<'_, '_>, ramfs: &Ramfs<'_, '_>, file: &TmpFile, offset: u64, bytes: &[u8]) {
        fs.mm.write_user(fs.cpu, self.id, self.buffer, bytes).unwrap();
        let at = (WriteAt::Offset(offset), bytes.len());
        let write = ramfs.write_from_user(file, at, (self.id, self.buffer), LIMIT);
        assert_eq!(fs.run(write), Ok((offset + bytes.len() as u64, bytes.len())));
    }

    fn read(
        &self,
        fs: &TestFs<'_, '_>,
        ramfs: &Ramfs<'_, '_>,
        file: &TmpFile,
        (offset, len): (u64, usize),
    ) -> Result<Vec<u8>, FileError> {
        let read = fs.run(ramfs.read_to_user(file, (offset, len), (self.id, self.buffer)))?;
        let mut found = vec![0; read];
        fs.mm.read_user(fs.cpu, self.id, self.buffer, &mut found).unwrap();
        Ok(found)
    }
}

fn isolate_used(mm: &TestMm<'_>, nr_blocks: u32) -> Vec<IsolatedBlock> {
    let used = |&block: &BlockIndex| mm.phys.block_usage(block).unwrap().used_pages > 0;
    let blocks = (0..nr_blocks).map(BlockIndex).filter(used);
    blocks.map(|block| mm.phys.isolate(block).unwrap()).collect()
}

fn unevictable(mm: &TestMm<'_>) -> u64 {
    let zones = mm.phys.populated_zones();
    zones.map(|zone| zone.lru_len(LruList::Unevictable)).sum()
}

#[test]
fn pages_without_a_place_elsewhere_move_when_everything_is_to_leave_and_their_file_system_moves_them() {
    machine!(mm, cpu, 512, 2);
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let file = ramfs.open(b"ram", Missing::Create).unwrap();
    let text: Vec<u8> = (0..=250).cycle().take(32 * 4096 + 100).collect();
    let program = Program::new(&mm, &cpu, &file);
    program.write(&fs, &ramfs, &file, 0, &text);
    fs.run(ramfs.set_size(&file, PAGES * 4096, LIMIT)).unwrap();
    // Those that are mapped and no call has touched move as others do.
    for page in 33..PAGES {
        store(&mm, &cpu, program.id, program.mapped + page * 4096, page).unwrap();
    }
    mm.validate().unwrap();
    fs.shrink(12);
    assert_eq!(
        (mm.cached_pages(file.mapping()), unevictable(&mm)),
        (PAGES, PAGES)
    );

    let before = mm.phys.stats();
    for mut block in isolate_used(&mm, 2) {
        while !mm.evict_batch(&cpu, &mut block, Eviction::All, 7).is_pass_done {}
        fs.work();
        block.rewind();
        let report = mm.migrate_batch(&cpu, &mut block, 1024);
        assert_eq!((&report.refused[..], report.end), (&[][..], BatchEnd::PassDone));
        let gone = mm.phys.hotplug_region().block_range(block.block()).unwrap();
        mm.phys.offline(block).unwrap();
        // Whoever remembers an old frame finds this.
        for page in 0..gone.nr_pages() {
            mm.frames.write_bytes(gone.start() + page, 0, &[0xEE; 4096]);
        }
    }
    let after = mm.phys.stats();
    assert_eq!(
        after.migrate_taken_over - before.migrate_taken_over,
        33,
        "by calls"
    );
    assert!(after.pgmigrate_success - before.pgmigrate_success >= PAGES);
    assert_eq!(mm.cache_use(file.mapping()).unwrap().swapped, 0);
    mm.validate().unwrap();
    assert_eq!(program.read(&fs, &ramfs, &file, (0, text.len())).unwrap(), text);
    for page in 33..PAGES {
        assert_eq!(
            load(&mm, &cpu, program.id, program.mapped + page * 4096),
            Ok(page)
        );
    }
}

#[test]
fn a_call_finds_the_new_frame_after_a_move_and_what_it_writes_there_is_what_programs_have_mapped() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let file = ramfs.open(b"ram", Missing::Create).unwrap();
    let program = Program::new(&mm, &cpu, &file);
    program.write(&fs, &ramfs, &file, 0, &[7; 3 * 4096]);
    assert_eq!(
        load(&mm, &cpu, program.id, program.mapped),
        Ok(0x0707_0707_0707_0707)
    );
    for round in 1..4 {
        for mut block in isolate_used(&mm, 2) {
            let report = mm.migrate_batch(&cpu, &mut block, 1024);
            assert_eq!(report.refused, []);
            mm.phys.undo(block);
        }
        program.write(&fs, &ramfs, &file, 4096, &[round; 8]);
        let word = u64::from_le_bytes([round; 8]);
        assert_eq!(
            load(&mm, &cpu, program.id, program.mapped + 4096),
            Ok(word),
            "the call wrote to another frame than the one that is mapped"
        );
        store(&mm, &cpu, program.id, program.mapped + 8192, word + 1).unwrap();
        assert_eq!(
            program.read(&fs, &ramfs, &file, (8192, 8)).unwrap(),
            (word + 1).to_le_bytes()
        );
        mm.validate().unwrap();
    }
    assert!(mm.phys.stats().migrate_taken_over >= 9);
}

#[test]
fn neither_unlocking_nor_unmapping_shows_such_pages_to_reclaim_and_cutting_the_file_frees_them() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let free = mm.phys.memory_stats().free_pages;
    let file = ramfs.open(b"ram", Missing::Create).unwrap();
    let program = Program::new(&mm, &cpu, &file);
    program.write(&fs, &ramfs, &file, 0, &[9; 16 * 4096]);
    load(&mm, &cpu, program.id, program.mapped).unwrap();
    mm.mlock(&cpu, program.id, (program.mapped, 8 * 4096), 64)
        .unwrap();
    mm.munlock(&cpu, program.id, program.mapped, 8 * 4096).unwrap();
    mm.validate().unwrap();
    mm.munmap(&cpu, program.id, program.mapped, PAGES * 4096).unwrap();
    mm.validate().unwrap();
    fs.shrink(12);
    assert_eq!((mm.cached_pages(file.mapping()), unevictable(&mm)), (16, 16));
    // A hole reads as zeroes, and a page that is cut off does when the file grows again.
    fs.run(ramfs.set_size(&file, 4096 + 5, LIMIT)).unwrap();
    mm.validate().unwrap();
    fs.run(ramfs.set_size(&file, 40 * 4096, LIMIT)).unwrap();
    let found = program.read(&fs, &ramfs, &file, (4096, 3 * 4096)).unwrap();
    assert_eq!(
        (&found[..5], found[5..].iter().all(|byte| *byte == 0)),
        (&[9; 5][..], true)
    );
    mm.destroy_space(&cpu, program.id).unwrap();
    ramfs.remove(b"ram").unwrap();
    drop(file);
    assert_eq!(fs.run(ramfs.reap()), 1);
    mm.validate().unwrap();
    assert_eq!((mm.phys.memory_stats().free_pages, unevictable(&mm)), (free, 0));
}

#[test]
fn a_page_whose_frame_has_failed_is_an_error_of_its_readers_and_nobody_remembers_the_frame() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let file = ramfs.open(b"ram", Missing::Create).unwrap();
    let program = Program::new(&mm, &cpu, &file);
    program.write(&fs, &ramfs, &file, 0, &[3; 2 * 4096]);
    load(&mm, &cpu, program.id, program.mapped).unwrap();
    let root = mm.space(program.id).unwrap().root();
    let gpa = translate(&mm.frames, root, program.mapped, Access::Read)
        .unwrap()
        .gpa;
    let mut losers = Vec::new();
    let failed = mm.memory_failure(&cpu, Pfn::containing(gpa).unwrap(), &mut losers);
    assert_eq!(
        (failed, losers),
        (Ok(crate::memory_failure::Contents::Lost), vec![program.id])
    );
    mm.validate().unwrap();
    assert_eq!(program.read(&fs, &ramfs, &file, (0, 8)), Err(FileError::Io));
    assert_eq!(program.read(&fs, &ramfs, &file, (4096, 8)).unwrap(), [3; 8]);
}

/// Pages that nobody may find missing.
struct Ring;

impl AddressSpaceOps for Ring {
    fn gfp(&self) -> Gfp {
        Gfp::HIGHUSER
    }

    fn kept_by(&self) -> Option<&'static str> {
        Some("a ring")
    }
}

/// A ring of four pages, mapped and there.
fn ring(mm: &TestMm<'_>, cpu: &Cpu, ramfs: &Ramfs<'_, '_>) -> (SpaceId, u64) {
    let file = ramfs.kept(Arc::new(Ring), 4 * 4096);
    let id = mm.create_space(cpu, &[]).unwrap();
    let request = MapRequest {
        len: 4 * 4096,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::File(FileArea::new(file.mapping(), 0, Sharing::Shared)),
    };
    let va = mm.mmap(id, &request).unwrap();
    for page in 0..4 {
        store(mm, cpu, id, va + page * 4096, page + 1).unwrap();
    }
    (id, va)
}

/// Where the pages are; no access takes a fault.
fn frames_without_fault(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Vec<Pfn> {
    let root = mm.space(id).unwrap().root();
    let frame = |page: u64| {
        let at = va + page * 4096;
        assert_eq!(mm.cpu_load(id, at), Ok(page + 1), "a fault");
        mm.cpu_store(id, at, page + 1).unwrap();
        Pfn::containing(translate(&mm.frames, root, at, Access::Write).unwrap().gpa).unwrap()
    };
    (0..4).map(frame).collect()
}

#[test]
fn a_ring_is_outside_of_removable_memory_and_never_missing_whatever_is_emptied_around_it() {
    machine!(mm, cpu, 512, 2);
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let (id, va) = ring(&mm, &cpu, &ramfs);
    let frames = frames_without_fault(&mm, id, va);
    let is_removable = |pfn: &Pfn| mm.phys.zone_of(*pfn).unwrap().kind() == ZoneKind::Movable;
    assert!(!frames.iter().any(is_removable));
    fs.shrink(12);
    assert_eq!(frames_without_fault(&mm, id, va), frames);
    for block in 0..2 {
        let mut token = mm.phys.isolate(BlockIndex(block)).unwrap();
        while !mm.evict_batch(&cpu, &mut token, Eviction::All, 64).is_pass_done {}
        token.rewind();
        assert_eq!(mm.migrate_batch(&cpu, &mut token, 1024).refused, []);
        mm.phys.offline(token).unwrap();
        assert_eq!(frames_without_fault(&mm, id, va), frames);
    }
    // Even a frame that is about to fail stays, and is named.
    let refused = mm.soft_offline(&cpu, frames[0]).unwrap_err();
    assert!(
        std::format!("{refused}").contains("pinned by a ring"),
        "{refused}"
    );
    assert_eq!(frames_without_fault(&mm, id, va), frames);
    mm.validate().unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    assert_eq!(fs.run(ramfs.reap()), 1);
    mm.validate().unwrap();
}

#[test]
fn a_ring_in_a_block_that_is_the_kernels_keeps_it_and_is_named() {
    machine!(mm, cpu, 512, 1);
    let block = BlockIndex(0);
    let token = mm.phys.isolate(block).unwrap();
    mm.phys.offline(token).unwrap();
    let mut taken = Vec::new();
    let all = Gfp::HIGHUSER.with(Gfp::MEMALLOC);
    while let Ok(pfn) = mm.phys.alloc_pages(&cpu, all, Order::ZERO) {
        taken.push(pfn);
    }
    mm.phys.online(block, ZoneKind::Normal).unwrap();
    let fs = TestFs::new(&mm, &cpu, 16);
    let ramfs: Ramfs<'_, '_> = Tmpfs::in_ram(&mm, &cpu);
    let (id, va) = ring(&mm, &cpu, &ramfs);
    let frames = frames_without_fault(&mm, id, va);
    let on_block = frames.iter().filter(|pfn| mm.phys.block_of(**pfn) == Some(block));
    assert_eq!(on_block.count(), 4, "a test of nothing");
    let mut token = mm.phys.isolate(block).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, 1024);
    let named: Vec<_> = report.refused.iter().map(|refusal| refusal.reason).collect();
    let pinned = RefusalReason::Pinned { holder: "a ring" };
    assert_eq!(
        named.iter().filter(|reason| **reason == pinned).count(),
        4,
        "{named:?}"
    );
    mm.phys.undo(token);
    assert_eq!(frames_without_fault(&mm, id, va), frames);
    mm.validate().unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    assert_eq!(fs.run(ramfs.reap()), 1);
    taken
        .into_iter()
        .for_each(|pfn| mm.phys.free_pages(&cpu, pfn).unwrap());
    let (token, report) = empty_block(&mm, &cpu, 0);
    assert_eq!(report.refused, []);
    mm.phys.offline(token).unwrap();
}
