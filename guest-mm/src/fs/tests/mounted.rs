//! A mounted file system: names under shrinkers, files without names, errors of the disk and whose they are.

use std::boxed::Box;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::vec;
use std::vec::Vec;

use super::world::{Disk, Durable, End, Numbers, World, pause};
use crate::disk::{BlockNr, Fault};
use crate::fs::mounted::{File, Missing, MountFlags, Mounted, WriteAt};
use crate::fs::pagefs::{FsError, InodeNr, Kind, Name, Volume, check, run};
use crate::fs::{Evict, Heap};
use crate::gfp::Gfp;
use crate::migrate::MigrateReport;
use crate::mm::mapping::{FileError, PageLookup, ReadAhead};
use crate::pfn::{Order, PAGE_BYTES};
use crate::tests::machine::machine;
use crate::{BlockIndex, IsolatedBlock};

pub(super) type Fs<'a, 'm> = Mounted<'m, World<'a, 'm>>;

/// Mounts a new file system and runs `test` on it, its requests being served beside it.
pub(super) fn with_fs(disk: &Disk, test: impl AsyncFnOnce(&Fs<'_, '_>, &World<'_, '_>)) {
    with_fs_told(disk, MountFlags::default(), test);
}

/// The same, the mount being told so.
fn with_fs_told(disk: &Disk, flags: MountFlags, test: impl AsyncFnOnce(&Fs<'_, '_>, &World<'_, '_>)) {
    machine!(mm, cpu, 512, 1);
    let numbers = Numbers::new(1);
    let world = World {
        mm: &mm,
        cpu: &cpu,
        disk,
    };
    let fs = RefCell::new(None);
    let mounting = async {
        *fs.borrow_mut() = Some(Mounted::mount(world, Heap, Heap, flags).await.unwrap());
    };
    assert_eq!(world.drive(&numbers, 1_000_000, mounting, Vec::new()), End::Done);
    let fs = fs.into_inner().unwrap();
    let others: Vec<Pin<Box<dyn Future<Output = ()>>>> = vec![Box::pin(fs.serve()), Box::pin(fs.serve())];
    let end = world.drive(&numbers, 10_000_000, test(&fs, &world), others);
    assert_eq!(end, End::Done, "it waits for ever");
    mm.validate().unwrap();
}

pub(super) async fn write(fs: &Fs<'_, '_>, file: &File, at: u64, bytes: &[u8]) -> Result<usize, FileError> {
    let from = |done: usize, part: &mut [u8]| {
        part.copy_from_slice(&bytes[done..done + part.len()]);
        Ok(())
    };
    let written = fs.write(file, (WriteAt::Offset(at), bytes.len()), from).await?;
    Ok(written.1)
}

pub(super) async fn read(fs: &Fs<'_, '_>, file: &File) -> Result<Vec<u8>, FileError> {
    let mut found = Vec::new();
    let to = |_: usize, bytes: &[u8]| {
        found.extend_from_slice(bytes);
        Ok(())
    };
    fs.read(file, &mut ReadAhead::default(), (0, 1 << 20), to).await?;
    Ok(found)
}

/// The block that a page in memory carries.
fn block_of(world: &World<'_, '_>, file: &File, page: u32) -> u32 {
    match world.mm.lock_page(world.cpu, file.mapping(), page) {
        Ok(PageLookup::Locked(page)) => page.private().unwrap(),
        _ => panic!("page {page} is not there"),
    }
}

/// One pass over a block that is to leave.
fn pass(world: &World<'_, '_>, block: &mut IsolatedBlock) -> MigrateReport {
    block.rewind();
    world.mm.migrate_batch(world.cpu, block, 1024)
}

#[test]
fn mounted_without_a_method_of_its_own_it_writes_dirty_pages_before_they_move_and_finds_their_blocks_again() {
    const PAGES: u32 = 6;
    let disk = Disk::new(200, 8);
    Durable::format(&disk);
    let flags = "migrate=default".parse().unwrap();
    with_fs_told(&disk, flags, async |fs, world| {
        let file = fs.open(b"a", Missing::Create).await.unwrap();
        write(fs, &file, 0, &[1; PAGES as usize * PAGE_BYTES])
            .await
            .unwrap();
        fs.fsync(&file).await.unwrap();
        // Half of them are dirty.
        write(fs, &file, 0, &[2; 3 * PAGE_BYTES]).await.unwrap();
        let blocks: Vec<u32> = (0..PAGES).map(|page| block_of(world, &file, page)).collect();
        let mut leaving = world.mm.phys.isolate(BlockIndex(0)).unwrap();
        let first = pass(world, &mut leaving);
        assert_eq!((first.moved_small, first.refused.len()), (3, 3), "{first:?}");
        while !pass(world, &mut leaving).refused.is_empty() {
            pause().await;
        }
        world.mm.phys.offline(leaving).unwrap();
        assert_eq!(world.mm.phys.stats().migrate_written_first, 3);
        let (ops, on_disk) = (fs.page_ops(), |page: usize| {
            world.disk.contents(BlockNr(blocks[page].into()))
        });
        assert_eq!((ops.released, ops.migrated), (6, 0));
        assert_eq!([on_disk(0)[9], on_disk(2)[9], on_disk(3)[9]], [2, 2, 1]);
        for page in 0..PAGES {
            match world.mm.lock_page(world.cpu, file.mapping(), page) {
                Ok(PageLookup::Locked(page)) => assert_eq!(page.private(), None),
                _ => panic!("page {page} is not there"),
            }
        }
        write(fs, &file, 0, &[3; PAGE_BYTES]).await.unwrap();
        assert_eq!(block_of(world, &file, 0), blocks[0]);
        fs.fsync(&file).await.unwrap();
        assert_eq!([on_disk(0)[9], on_disk(1)[9]], [3, 2]);
        fs.close(&file).await;
    });
    run(check(Durable::of(&disk))).unwrap();
}

#[test]
fn names_and_inodes_come_back_from_the_disk_after_they_were_given_up() {
    let disk = Disk::new(2000, 8);
    Durable::format(&disk);
    let mut volume = run(Volume::mount(Durable::of(&disk))).unwrap();
    let mut directory = InodeNr::ROOT;
    for depth in 0..4_u8 {
        let name = Name::new(&[b'd', b'0' + depth]).unwrap();
        directory = run(volume.create(directory, &name, Kind::Directory)).unwrap();
        for number in 0..40_u8 {
            let name = Name::new(&[b'f', number + 48]).unwrap();
            let file = run(volume.create(directory, &name, Kind::File)).unwrap();
            run(volume.write_file(file, &[depth * 40 + number; 100])).unwrap();
        }
    }
    run(volume.commit()).unwrap();
    with_fs(&disk, async |fs, world| {
        for round in 0..3 {
            for (depth, path) in [(0, "d0"), (1, "d0/d1"), (3, "d0/d1/d2/d3")] {
                for number in 0..40_u8 {
                    let path = [path.as_bytes(), b"/f", &[number + 48]].concat();
                    let file = fs.open(&path, Missing::Fail).await.unwrap();
                    assert_eq!(read(fs, &file).await.unwrap(), vec![depth * 40 + number; 100]);
                    fs.close(&file).await;
                    let missing = [&path[..], b"x"].concat();
                    assert_eq!(fs.stat(&missing).await, Err(FsError::NotFound));
                }
            }
            let (names, inodes) = fs.cache_stat();
            assert!(names.negative >= 120 && inodes.inodes >= 120 && inodes.held == 0);
            // The second time nothing is looked up on the disk, and the third time everything is again.
            if round == 1 {
                assert_eq!(fs.names().give_up(u64::MAX), names.entries);
                assert_eq!(fs.inodes().give_up(world.cpu, u64::MAX, &fs), inodes.inodes);
                assert_eq!(world.mm.mapping_ids().count(), 0);
                assert_eq!(world.mm.phys.stats().nr_file_pages, 0);
            }
        }
        let (names, inodes) = fs.cache_stat();
        // A file is looked for without the gate first, and then with it.
        assert_eq!((names.misses, inodes.misses), (2 * (2 * 120 + 120 + 4), 2 * 120));
    });
}

#[test]
fn an_inode_that_somebody_uses_or_that_is_newer_than_the_disk_stays() {
    let disk = Disk::new(100, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"a", Missing::Create).await.unwrap();
        assert_eq!(write(fs, &file, 0, b"dirty").await, Ok(5));
        assert!(!(&fs).evict(world.cpu, file.number(), &file), "it is dirty");
        fs.fsync(&file).await.unwrap();
        assert_eq!(fs.inodes().give_up(world.cpu, 10, &fs), 0, "it is open");
        fs.close(&file).await;
        assert_eq!(fs.inodes().give_up(world.cpu, 10, &fs), 1);
        let file = fs.open(b"a", Missing::Fail).await.unwrap();
        assert_eq!(read(fs, &file).await.unwrap(), b"dirty");
        // It grows in the block that it has, which no inode is told before the next commit.
        assert_eq!(write(fs, &file, 5, b" and longer").await, Ok(11));
        fs.write_data(file.mapping(), &fs.error_cursor(&file))
            .await
            .unwrap();
        fs.close(&file).await;
        assert_eq!(fs.inodes().give_up(world.cpu, 10, &fs), 0, "its size is newer");
        fs.commit().await.unwrap();
        assert_eq!(fs.inodes().give_up(world.cpu, 10, &fs), 1);
        let file = fs.open(b"a", Missing::Fail).await.unwrap();
        assert_eq!(read(fs, &file).await.unwrap(), b"dirty and longer");
        fs.close(&file).await;
    });
}

#[test]
fn a_file_without_a_name_is_there_until_it_is_closed_and_its_blocks_come_back() {
    let disk = Disk::new(100, 8);
    Durable::format(&disk);
    let free = || {
        let usage = run(check(Durable::of(&disk))).unwrap();
        usage.nr_blocks - usage.used_blocks
    };
    let before = free();
    with_fs(&disk, async |fs, _| {
        let file = fs.open(b"file", Missing::Create).await.unwrap();
        assert_eq!(
            write(fs, &file, 0, &[7; 5 * PAGE_BYTES]).await,
            Ok(5 * PAGE_BYTES)
        );
        fs.fsync(&file).await.unwrap();
        fs.remove(b"file").await.unwrap();
        assert_eq!(fs.stat(b"file").await, Err(FsError::NotFound));
        let other = fs.open(b"file", Missing::Create).await.unwrap();
        assert_eq!(read(fs, &file).await.unwrap(), [7; 5 * PAGE_BYTES]);
        assert_eq!(read(fs, &other).await.unwrap(), []);
        fs.close(&other).await;
        fs.remove(b"file").await.unwrap();
        fs.close(&file).await;
        fs.commit().await.unwrap();
    });
    // The root directory has a block now.
    assert_eq!(free(), before - 1);
}

#[test]
fn a_block_that_cannot_be_written_is_an_error_of_its_file_alone_and_told_once() {
    let disk = Disk::new(200, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let bad = fs.open(b"bad", Missing::Create).await.unwrap();
        let good = fs.open(b"good", Missing::Create).await.unwrap();
        write(fs, &bad, 0, &[1; 3 * PAGE_BYTES]).await.unwrap();
        write(fs, &good, 0, &[2; 3 * PAGE_BYTES]).await.unwrap();
        // The pages are one request, of which the second fails.
        let block = block_of(world, &bad, 1);
        world.disk.break_block(Fault::Write, BlockNr(block.into()));
        assert_eq!(fs.fsync(&bad).await, Err(FileError::Io));
        assert_eq!(fs.fsync(&good).await, Ok(()));
        // The names are on the disk, and so are the page before and the page behind; in between nothing is made up.
        let mut volume = run(Volume::mount(Durable::of(world.disk))).unwrap();
        let number = run(volume.resolve(b"bad")).unwrap();
        let found = run(volume.read_file(number)).unwrap();
        let pages: Vec<&[u8]> = found.chunks(PAGE_BYTES).collect();
        assert_eq!(pages, [[1; PAGE_BYTES], [0; PAGE_BYTES], [1; PAGE_BYTES]]);
        let number = run(volume.resolve(b"good")).unwrap();
        assert_eq!(run(volume.read_file(number)).unwrap(), [2; 3 * PAGE_BYTES]);
        // In memory nothing is lost, and the next try finds the disk mended.
        assert_eq!(read(fs, &bad).await.unwrap(), [1; 3 * PAGE_BYTES]);
        world.disk.mend();
        assert_eq!(fs.fsync(&bad).await, Ok(()));
        let mut volume = run(Volume::mount(Durable::of(world.disk))).unwrap();
        let number = run(volume.resolve(b"bad")).unwrap();
        assert_eq!(run(volume.read_file(number)).unwrap(), [1; 3 * PAGE_BYTES]);
        fs.close(&bad).await;
        fs.close(&good).await;
    });
}

#[test]
fn everybody_who_has_a_file_open_is_told_once_of_what_could_not_be_written() {
    let disk = Disk::new(200, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"a", Missing::Create).await.unwrap();
        let (id, [first, second]) = (file.mapping(), [(); 2].map(|()| fs.error_cursor(&file)));
        write(fs, &file, 0, &[1; PAGE_BYTES]).await.unwrap();
        let block = block_of(world, &file, 0);
        world.disk.break_block(Fault::Write, BlockNr(block.into()));
        // Who has everything written is told, and takes it from nobody.
        assert_eq!(fs.sync().await, Err(FileError::Io));
        let early = fs.error_cursor(&file);
        world.disk.mend();
        for told in [Err(FileError::Io), Ok(())] {
            assert_eq!(fs.write_data(id, &first).await, told);
            assert_eq!(fs.write_data(id, &second).await, told);
            assert_eq!(fs.write_data(id, &early).await, told, "nobody was told before");
        }
        let late = fs.error_cursor(&file);
        assert_eq!(fs.write_data(id, &late).await, Ok(()), "that was before its time");
        fs.close(&file).await;
    });
}

#[test]
fn a_block_that_cannot_be_read_is_an_error_of_its_page_alone() {
    let disk = Disk::new(200, 8);
    Durable::format(&disk);
    let mut volume = run(Volume::mount(Durable::of(&disk))).unwrap();
    let name = Name::new(b"file").unwrap();
    let file = run(volume.create(InodeNr::ROOT, &name, Kind::File)).unwrap();
    run(volume.write_file(file, &[3; 8 * PAGE_BYTES])).unwrap();
    let third = run(volume.inode(file)).unwrap().block_of(3).unwrap();
    run(volume.commit()).unwrap();
    disk.break_block(Fault::Read, BlockNr(third.into()));
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"file", Missing::Fail).await.unwrap();
        // What comes before the page counts.
        assert_eq!(read(fs, &file).await.unwrap(), [3; 3 * PAGE_BYTES]);
        let mut ahead = ReadAhead::default();
        let page = (3 * PAGE_BYTES as u64, PAGE_BYTES);
        assert_eq!(
            fs.read(&file, &mut ahead, page, |_, _| Ok(())).await,
            Err(FileError::Io)
        );
        let next = (4 * PAGE_BYTES as u64, 4 * PAGE_BYTES);
        assert_eq!(
            fs.read(&file, &mut ahead, next, |_, _| Ok(())).await,
            Ok(4 * PAGE_BYTES)
        );
        world.disk.mend();
        assert_eq!(read(fs, &file).await.unwrap(), [3; 8 * PAGE_BYTES]);
        fs.close(&file).await;
    });
}

#[test]
fn a_full_disk_stops_a_write_and_harms_nothing() {
    let disk = Disk::new(60, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, _| {
        let file = fs.open(b"file", Missing::Create).await.unwrap();
        let written = write(fs, &file, 0, &[9; 80 * PAGE_BYTES]).await.unwrap();
        assert!(
            written > 30 * PAGE_BYTES && written < 60 * PAGE_BYTES,
            "{written}"
        );
        assert_eq!(
            write(fs, &file, written as u64, &[9; 10]).await,
            Err(FileError::NoSpace)
        );
        assert_eq!(fs.size(&file), written as u64);
        fs.fsync(&file).await.unwrap();
        fs.set_size(&file, 10).await.unwrap();
        fs.commit().await.unwrap();
        assert_eq!(
            write(fs, &file, 10, &[8; 20 * PAGE_BYTES]).await,
            Ok(20 * PAGE_BYTES)
        );
        fs.fsync(&file).await.unwrap();
        fs.close(&file).await;
    });
    run(check(Durable::of(&disk))).unwrap();
}

#[test]
fn a_frame_whose_request_nobody_waits_for_any_more_comes_back_when_the_disk_is_done_with_it() {
    let disk = Disk::new(400, 8);
    Durable::format(&disk);
    let mut volume = run(Volume::mount(Durable::of(&disk))).unwrap();
    let name = Name::new(b"f").unwrap();
    run(volume.create(InodeNr::ROOT, &name, Kind::File)).unwrap();
    run(volume.commit()).unwrap();
    with_fs(&disk, async |fs, world| {
        let free = || {
            let counters = world.mm.phys.populated_zones().map(|zone| zone.counters());
            counters
                .map(|counters| counters.free_pages + counters.cached_pages)
                .sum::<u64>()
        };
        let give_up = || {
            let mut list = std::pin::pin!(fs.list(b"/"));
            let mut context = Context::from_waker(Waker::noop());
            assert!(list.as_mut().poll(&mut context).is_pending(), "the disk reads");
        };
        let before = free();
        give_up();
        assert_eq!(free(), before - 1, "the disk has it");
        let mut taken = Vec::new();
        while let Ok(pfn) = world.mm.phys.alloc_pages(world.cpu, Gfp::KERNEL, Order::ZERO) {
            taken.push(pfn);
        }
        // The spare one, and those who wait for it.
        give_up();
        give_up();
        assert_eq!(fs.list(b"/").await.unwrap().len(), 1);
        for pfn in taken {
            world.mm.phys.put_page(world.cpu, pfn);
        }
        assert_eq!(free(), before);
        assert_eq!(fs.list(b"/").await.unwrap().len(), 1);
    });
}

#[test]
fn a_write_that_is_given_up_says_nothing_more_of_the_end_and_lets_the_next_one_write() {
    let disk = Disk::new(200, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"a", Missing::Create).await.unwrap();
        assert_eq!(write(fs, &file, 0, &[1; 100]).await, Ok(100));
        fs.fsync(&file).await.unwrap();
        fs.close(&file).await;
        assert_eq!(fs.inodes().give_up(world.cpu, 10, &fs), 1);
        let file = fs.open(b"a", Missing::Fail).await.unwrap();
        {
            let from = |_: usize, part: &mut [u8]| {
                part.fill(2);
                Ok(())
            };
            // The first page has to be read from the disk.
            let mut writing = pin!(fs.write(&file, (WriteAt::Offset(50), 5 * 4096), from));
            let waits = poll_fn(|context| Poll::Ready(writing.as_mut().poll(context).is_pending())).await;
            assert!(waits);
            assert_eq!(fs.end_of(&file), 50 + 5 * 4096);
        }
        assert_eq!(fs.end_of(&file), 100);
        assert_eq!(write(fs, &file, 100, b"more").await, Ok(4));
        assert_eq!(fs.end_of(&file), 104);
        fs.close(&file).await;
    });
}
