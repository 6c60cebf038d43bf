//! Address spaces, files and shared memory used by CPUs that really run at once, while blocks are emptied under them and pages reclaimed.
//!
//! Every thread has its own word in each page that it shares with others, so that it knows what it must find.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::vec;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use crate::blocks::BlockIndex;
use crate::migrate::BatchEnd;
use crate::mm::mapping::{DefaultOps, FileError, FileIo, IoDirection, MappingKind, PageLookup};
use crate::mm::{CopyError, FaultError, FileArea, FilePlace, ForkError, MappingId, MmapError, Sharing};
use crate::pfn::PAGE_BYTES;
use crate::tests::machine::{RW, TestMm, anonymous, machine_of};
use crate::tests::phys_model::{descriptors, small_memory_for};
use crate::{Backing, Frames, HugeAdvice, MapRequest, Order, Place, SpaceId};

const PAGE: u64 = 4096;
/// Pages of the file, and of the shared memory.
const FILE_PAGES: u64 = 300;
const ROUNDS: u64 = 60;
const NR_BLOCKS: u32 = 2;

/// A machine with a file, and the blocks of its disk.
struct World<'m> {
    mm: TestMm<'m>,
    file: MappingId,
    memory: MappingId,
    disk: Mutex<BTreeMap<u32, Vec<u8>>>,
    running: AtomicU32,
    has_failed: AtomicBool,
}

/// Others stop when a thread panics.
struct Running<'w, 'm>(&'w World<'m>);

impl Drop for Running<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.has_failed.store(true, SeqCst);
        }
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl World<'_> {
    /// Repeats something until nothing stands in its way that goes by itself. False without memory.
    fn until_done(&self, cpu: &Cpu, mut attempt: impl FnMut() -> Result<(), CopyError>) -> bool {
        for _ in 0..200_000 {
            assert!(!self.has_failed.load(SeqCst));
            match attempt() {
                Ok(()) => return true,
                Err(CopyError::Locked { .. }) => thread::yield_now(),
                Err(CopyError::NeedsBlock { place, .. }) => self.prepare_write(cpu, place),
                Err(CopyError::Fault {
                    error: FaultError::OutOfMemory(_),
                    ..
                }) => self.reclaim(cpu),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it waits for ever");
    }

    fn prepare_write(&self, cpu: &Cpu, place: FilePlace) {
        if let PageLookup::Locked(page) = self.mm.lock_page(cpu, place.mapping, place.index).unwrap() {
            page.set_private(place.index + 1);
        }
    }

    fn reclaim(&self, cpu: &Cpu) {
        for zone in self.mm.phys.populated_zones() {
            self.mm.shrink_zone(cpu, zone, 32);
        }
        thread::yield_now();
    }

    /// The file system and its disk.
    fn serve(&self, cpu: &Cpu, io: FileIo) {
        let mut disk = self.disk.lock().unwrap();
        for ((nth, pfn), block) in io.pages().iter().enumerate().zip(io.index() + 1..) {
            if io.direction() == IoDirection::Write {
                assert_eq!(self.mm.io_private(&io, nth), Some(block));
                let mut bytes = vec![0; PAGE_BYTES];
                self.mm.frames.read_bytes(*pfn, 0, &mut bytes);
                disk.insert(block, bytes);
            } else if let Some(bytes) = disk.get(&block) {
                self.mm.set_io_private(&io, nth, block);
                self.mm.frames.write_bytes(*pfn, 0, bytes);
            } else {
                self.mm.frames.zero(*pfn, Order::ZERO);
            }
        }
        drop(disk);
        self.mm.end_file_io(cpu, io, Ok(()));
    }

    /// Waits for something that other threads bring about, or this one's disk.
    fn wait_for<T>(&self, cpu: &Cpu, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if let std::task::Poll::Ready(value) = polled {
                return value;
            }
            self.serve_all(cpu);
            thread::yield_now();
        }
    }

    fn serve_all(&self, cpu: &Cpu) {
        while let Some(io) = self.mm.next_file_io() {
            self.serve(cpu, io);
        }
    }

    fn map(&self, space: SpaceId, mapping: MappingId) -> u64 {
        let request = MapRequest {
            len: FILE_PAGES * PAGE,
            place: Place::Anywhere,
            prot: RW,
            backing: Backing::File(FileArea::new(mapping, 0, Sharing::Shared)),
        };
        self.mm.mmap(space, &request).unwrap()
    }

    fn put(&self, cpu: &Cpu, space: SpaceId, va: u64, value: u64) {
        self.until_done(cpu, || self.mm.write_user(cpu, space, va, &value.to_le_bytes()));
    }

    fn check(&self, cpu: &Cpu, space: SpaceId, va: u64, value: u64) {
        let mut bytes = [0; 8];
        self.until_done(cpu, || self.mm.read_user(cpu, space, va, &mut bytes));
        assert_eq!(
            u64::from_le_bytes(bytes),
            value,
            "{va:#x} of CPU {}",
            cpu.id().number()
        );
    }

    fn end(&self, space: SpaceId, cpu: &Cpu) {
        while self.mm.destroy_space(cpu, space).is_err() {
            thread::yield_now();
        }
    }
}

/// Programs come, fork, store to what is theirs and to what is shared, and go. Returns the last value in each page.
fn live(world: &World<'_>, cpu: &Cpu) -> Vec<u64> {
    let _running = Running(world);
    let own_word = u64::from(cpu.id().number()) * 8;
    let mut last = vec![0; usize::try_from(FILE_PAGES).unwrap()];
    for round in 1..=ROUNDS {
        let space = world.mm.create_space(cpu, &[]).unwrap();
        let shared = [world.file, world.memory].map(|mapping| world.map(space, mapping));
        let own = world
            .mm
            .mmap(space, &anonymous(20 * PAGE, HugeAdvice::NoHuge))
            .unwrap();
        for page in (round % 7..FILE_PAGES).step_by(7) {
            let at = page * PAGE + own_word;
            for va in shared {
                world.check(cpu, space, va + at, last[usize::try_from(page).unwrap()]);
                world.put(cpu, space, va + at, round << 16 | page);
            }
            last[usize::try_from(page).unwrap()] = round << 16 | page;
            world.put(cpu, space, own + page % 20 * PAGE, round);
        }
        let child = loop {
            match world.mm.fork(cpu, space) {
                Ok(child) => break Some(child),
                Err(ForkError::Migrating(_)) => thread::yield_now(),
                Err(_) => break None,
            }
        };
        if let Some(child) = child {
            world.put(cpu, child, own, round + 1);
            for page in (round % 7..FILE_PAGES).step_by(35) {
                let at = page * PAGE + own_word;
                world.check(cpu, child, shared[0] + at, last[usize::try_from(page).unwrap()]);
            }
            while let Err(error) = world.mm.munmap(cpu, child, shared[1], FILE_PAGES * PAGE) {
                assert!(matches!(error, MmapError::Migrating(_)), "{error}");
                thread::yield_now();
            }
            world.end(child, cpu);
        }
        let is_written = (round % 7..FILE_PAGES).step_by(7).any(|page| page % 20 == 0);
        world.check(cpu, space, own, if is_written { round } else { 0 });
        world.end(space, cpu);
    }
    last
}

/// Blocks are emptied and put back, pages reclaimed and written back, requests served.
fn disturb(world: &World<'_>, cpu: &Cpu) -> u64 {
    let mut moved = 0;
    let mut turn = 0;
    while world.running.load(SeqCst) > 0 {
        turn += 1;
        world.serve_all(cpu);
        if turn % 3 == 0 {
            world.reclaim(cpu);
            world.mm.write_back(cpu, 64);
        }
        let Ok(mut block) = world.mm.phys.isolate(BlockIndex(turn % NR_BLOCKS)) else {
            continue;
        };
        loop {
            let report = world.mm.migrate_batch(cpu, &mut block, 40);
            moved += u64::from(report.moved_small);
            world.serve_all(cpu);
            if report.end != BatchEnd::Budget {
                break;
            }
        }
        world.mm.phys.undo(block);
    }
    moved
}

#[test]
fn what_threads_store_to_files_and_memory_is_there_whatever_moves_or_goes_meanwhile() {
    let pages = descriptors(512 * NR_BLOCKS);
    let phys = small_memory_for(3, &pages, 512, NR_BLOCKS);
    let mm = machine_of(&phys);
    let cpus = CpuSet::new(3).unwrap();
    let [one, two, three] = [0, 1, 2].map(|number| cpus.claim(CpuId::new(number).unwrap()).unwrap());
    let free = mm.phys.memory_stats().free_pages;
    let world = World {
        file: mm.create_mapping(MappingKind::File(Arc::new(DefaultOps)), FILE_PAGES * PAGE),
        memory: mm.create_mapping(MappingKind::Shmem, FILE_PAGES * PAGE),
        mm,
        disk: Mutex::default(),
        running: AtomicU32::new(2),
        has_failed: AtomicBool::new(false),
    };
    let (lasts, moved) = thread::scope(|scope| {
        let programs = [one, two].map(|cpu| {
            let world = &world;
            scope.spawn(move || live(world, &cpu))
        });
        let moved = disturb(&world, &three);
        (programs.map(|program| program.join().unwrap()), moved)
    });
    assert!(moved > 0, "nothing was moved");
    let three = &three;
    world.mm.validate().unwrap();
    assert_eq!(world.wait_for(three, world.mm.sync(three, world.file)), Ok(()));
    world.mm.validate().unwrap();
    {
        let disk = world.disk.lock().unwrap();
        for (cpu, last) in lasts.iter().enumerate() {
            for (block, value) in (1..).zip(last) {
                let found = disk.get(&block).map_or(0, |bytes| {
                    u64::from_le_bytes(bytes[cpu * 8..cpu * 8 + 8].try_into().unwrap())
                });
                assert_eq!(found, *value, "block {block}, CPU {cpu}");
            }
        }
    }
    for mapping in [world.file, world.memory] {
        let removed: Result<(), FileError> = world.wait_for(three, world.mm.truncate(three, mapping, 0));
        removed.unwrap();
        world.mm.remove_mapping(mapping).unwrap();
    }
    world.mm.validate().unwrap();
    assert_eq!(world.mm.phys.memory_stats().free_pages, free);
}
