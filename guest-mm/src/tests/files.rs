//! Pages of files: read in once, written back, dropped, and what errors of the disk do.

use core::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use crate::disk::Fault;
use crate::mm::MappingId;
use crate::mm::mapping::{AddressSpaceOps, DefaultOps, FileError, MappingKind, PrivatePage, ReadAhead};
use crate::tests::machine::{TestMm, machine};
use crate::tests::test_fs::TestFs;

const PAGE: usize = 4096;

pub(crate) fn file(mm: &TestMm<'_>, size: u64) -> MappingId {
    mm.create_mapping(MappingKind::File(Arc::new(DefaultOps)), size)
}

pub(crate) fn read(
    fs: &TestFs<'_, '_>,
    id: MappingId,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, FileError> {
    let mut bytes = vec![0; len];
    let mut ahead = ReadAhead::default();
    let to = |done: usize, piece: &[u8]| {
        bytes[done..done + piece.len()].copy_from_slice(piece);
        Ok(())
    };
    let read = fs.run(fs.mm.read_file(fs.cpu, id, &mut ahead, (offset, len), to))?;
    bytes.truncate(read);
    Ok(bytes)
}

pub(crate) fn write(
    fs: &TestFs<'_, '_>,
    id: MappingId,
    offset: u64,
    bytes: &[u8],
) -> Result<usize, FileError> {
    let from = |done: usize, piece: &mut [u8]| {
        piece.copy_from_slice(&bytes[done..done + piece.len()]);
        Ok(())
    };
    fs.run(fs.mm.write_file(fs.cpu, id, fs, (offset, bytes.len()), from))
}

#[test]
fn a_file_is_read_once_and_ahead_of_its_reader() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 64 * PAGE as u64 - 100);
    fs.preset(id, &(1..=64).collect::<Vec<u8>>());
    let bytes = read(&fs, id, 0, 70 * PAGE).unwrap();
    assert_eq!(bytes.len(), 64 * PAGE - 100);
    assert!((0..bytes.len()).all(|at| usize::from(bytes[at]) == at / PAGE + 1));
    assert_eq!(read(&fs, id, 5000, 3).unwrap(), [2, 2, 2]);
    assert_eq!(read(&fs, id, 64 * PAGE as u64, 1).unwrap(), []);
    let stats = mm.phys.stats();
    assert_eq!((stats.pgpgin, stats.nr_file_pages, stats.nr_dirty), (64, 64, 0));
    fs.run(mm.truncate(&cpu, id, 0)).unwrap();
    mm.remove_mapping(id).unwrap();
    assert_eq!(mm.phys.stats().nr_file_pages, 0);
}

#[test]
fn what_is_written_is_in_memory_at_once_and_on_the_disk_after_a_sync() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 0);
    let text: Vec<u8> = (0..=250).cycle().take(10 * PAGE + 77).collect();
    assert_eq!(write(&fs, id, 3000, &text), Ok(text.len()));
    assert_eq!(mm.mapping_size(id), Some(3000 + text.len() as u64));
    assert_eq!(read(&fs, id, 3000, text.len()).unwrap(), text);
    assert_eq!(read(&fs, id, 0, 3000).unwrap(), vec![0; 3000]);
    let stats = mm.phys.stats();
    assert_eq!(
        (stats.pgpgin, stats.pgpgout, stats.nr_dirty),
        (0, 0, 11),
        "nothing had to be read"
    );
    assert!(mm.is_dirty(id));
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    let on_disk = |at: usize| {
        let block = fs.block(id, u32::try_from(at / PAGE).unwrap()).unwrap();
        fs.disk.contents(block)[at % PAGE]
    };
    assert!((0..text.len()).all(|at| on_disk(3000 + at) == text[at]));
    let stats = mm.phys.stats();
    assert_eq!((stats.pgpgout, stats.nr_dirty, stats.nr_writeback), (11, 0, 0));
    assert!(!mm.is_dirty(id) && mm.dirtied_at(id).is_none());
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_of_its_reader_alone_and_the_next_try_reads_again() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 8 * PAGE as u64);
    fs.preset(id, &[7; 8]);
    fs.disk.break_block(Fault::Read, fs.block(id, 2).unwrap());
    assert_eq!(
        read(&fs, id, 0, 8 * PAGE).unwrap().len(),
        2 * PAGE,
        "as far as it can be read"
    );
    assert_eq!(read(&fs, id, 2 * PAGE as u64, 1), Err(FileError::Io));
    assert_eq!(read(&fs, id, 3 * PAGE as u64, 5 * PAGE).unwrap(), [7; 5 * PAGE]);
    fs.disk.mend();
    assert_eq!(read(&fs, id, 0, 8 * PAGE).unwrap(), [7; 8 * PAGE]);
}

#[test]
fn a_page_that_cannot_be_written_is_told_of_and_tried_once_more() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 0);
    write(&fs, id, 0, &[3; 3 * PAGE]).unwrap();
    fs.disk.break_block(Fault::Write, fs.block(id, 0).unwrap());
    assert_eq!(fs.run(mm.sync(&cpu, id)), Err(FileError::Io));
    assert!(mm.phys.stats().nr_dirty > 0 && mm.is_dirty(id));
    fs.disk.mend();
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    assert_eq!(
        (
            mm.phys.stats().nr_dirty,
            fs.disk.contents(fs.block(id, 0).unwrap())[9]
        ),
        (0, 3)
    );
}

/// A file system that counts what could not be written.
#[derive(Default)]
struct CountsLost(core::sync::atomic::AtomicU32);

impl AddressSpaceOps for CountsLost {
    fn write_lost(&self, _: PrivatePage) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_page_that_cannot_be_written_twice_is_clean_and_told_of_and_what_is_stored_next_is_tried_again() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let ops = Arc::new(CountsLost::default());
    let id = mm.create_mapping(MappingKind::File(ops.clone()), 0);
    write(&fs, id, 0, &[3; 3 * PAGE]).unwrap();
    let block = fs.block(id, 1).unwrap();
    fs.disk.break_block(Fault::Write, block);
    assert_eq!(fs.run(mm.sync(&cpu, id)), Err(FileError::Io));
    assert_eq!((ops.0.load(Relaxed), mm.is_dirty(id)), (0, true));
    assert_eq!(fs.run(mm.sync(&cpu, id)), Err(FileError::Io));
    let lost = ops.0.load(Relaxed);
    // This file system's requests fail as a whole.
    assert_eq!((lost, mm.is_dirty(id)), (3, false));
    assert_eq!((mm.phys.stats().nr_dirty, mm.dirtied_at(id)), (0, None));
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()), "told of once");
    assert_eq!(
        read(&fs, id, 0, 3 * PAGE).unwrap(),
        [3; 3 * PAGE],
        "in memory still"
    );
    // Something new has two tries of its own.
    write(&fs, id, PAGE as u64, &[4; 5]).unwrap();
    assert_eq!(fs.run(mm.sync(&cpu, id)), Err(FileError::Io));
    fs.disk.mend();
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    assert_eq!(fs.disk.contents(block)[..6], [4, 4, 4, 4, 4, 3]);
    assert_eq!(ops.0.load(Relaxed), lost);
}

#[test]
fn who_writes_to_a_disk_that_takes_nothing_any_more_goes_on_and_is_told_in_the_end() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 2048);
    let (good, bad) = (file(&mm, 0), file(&mm, 0));
    write(&fs, good, 0, &[1; 2 * PAGE]).unwrap();
    for block in 3..2048 {
        fs.disk.break_block(Fault::Write, crate::disk::BlockNr(block));
    }
    let many = 2 * usize::try_from(mm.dirty_limits().limit).unwrap();
    let mut writer = std::pin::pin!(mm.write_file(&cpu, bad, &fs, (0, many * PAGE), |_, piece| {
        piece.fill(5);
        Ok(())
    }));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut rounds = 0;
    let written = loop {
        if let std::task::Poll::Ready(written) = writer.as_mut().poll(&mut context) {
            break written;
        }
        // As the daemon does while there is too much.
        mm.write_back(&cpu, 64);
        fs.work();
        rounds += 1;
        assert!(rounds < 10_000, "it waits for ever");
    };
    assert_eq!(written, Ok(many * PAGE));
    assert!(rounds > 0, "it had to wait");
    assert_eq!(fs.run(mm.sync(&cpu, bad)), Err(FileError::Io));
    assert_eq!(fs.run(mm.sync(&cpu, good)), Ok(()));
    assert_eq!(fs.disk.contents(fs.block(good, 1).unwrap())[7], 1);
}

#[test]
fn the_page_cache_is_not_the_kernels_and_programs_can_have_most_of_it() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 200 * PAGE as u64);
    fs.preset(id, &[1; 200]);
    let before = mm.phys.memory_stats();
    read(&fs, id, 0, 200 * PAGE).unwrap();
    let after = mm.phys.memory_stats();
    assert_eq!((before.file_pages, after.file_pages), (0, 200));
    assert_eq!(after.kernel_pages, before.kernel_pages);
    assert_eq!(after.free_pages, before.free_pages - 200);
    // But for the low watermarks, or half of it.
    let kept = 200 - after.available_file_pages;
    assert!((1..=100).contains(&kept), "{after:?}");
    assert_eq!(
        after.available_pages - after.available_file_pages,
        before.available_pages - 200
    );
}

#[test]
fn what_was_cut_off_a_file_is_zero_when_it_grows_again() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 0);
    write(&fs, id, 0, &[9; 4 * PAGE]).unwrap();
    fs.run(mm.sync(&cpu, id)).unwrap();
    fs.run(mm.truncate(&cpu, id, PAGE as u64 + 10)).unwrap();
    fs.forget(id, 2);
    assert_eq!(
        (mm.cached_pages(id), mm.mapping_size(id)),
        (2, Some(PAGE as u64 + 10))
    );
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    fs.run(mm.truncate(&cpu, id, 3 * PAGE as u64)).unwrap();
    let mut expected = vec![0; 3 * PAGE];
    expected[..PAGE + 10].fill(9);
    assert_eq!(read(&fs, id, 0, 4 * PAGE).unwrap(), expected);
    assert_eq!(fs.disk.contents(fs.block(id, 1).unwrap())[10..], [0; PAGE - 10]);
}

#[test]
fn without_a_block_nothing_is_written_and_what_was_before_counts() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 0);
    fs.free.set(2);
    assert_eq!(write(&fs, id, 0, &[1; 4 * PAGE]), Ok(2 * PAGE));
    assert_eq!(write(&fs, id, 2 * PAGE as u64, &[1]), Err(FileError::NoSpace));
    assert_eq!(mm.mapping_size(id), Some(2 * PAGE as u64));
}

#[test]
fn dirty_pages_are_written_when_they_are_old_or_many_and_who_writes_more_waits() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 2048);
    let (old, new) = (file(&mm, 0), file(&mm, 0));
    mm.set_time(100);
    write(&fs, old, 0, &[1; 2 * PAGE]).unwrap();
    mm.set_time(200);
    write(&fs, new, 0, &[2; 2 * PAGE]).unwrap();
    write(&fs, old, PAGE as u64, &[1; PAGE]).unwrap();
    assert_eq!(mm.write_back_old(&cpu, 100, 64), 2);
    fs.work();
    assert!(!mm.is_dirty(old) && mm.is_dirty(new));
    let limit = mm.dirty_limits().limit;
    let many = usize::try_from(limit).unwrap() + 50;
    let from = |_: usize, piece: &mut [u8]| {
        piece.fill(5);
        Ok(())
    };
    let mut writer = std::pin::pin!(mm.write_file(&cpu, new, &fs, (0, many * PAGE), from));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(
        writer.as_mut().poll(&mut context).is_pending(),
        "too much is dirty"
    );
    assert!(mm.is_too_dirty());
    while writer.as_mut().poll(&mut context).is_pending() {
        assert!(mm.write_back(&cpu, 64) > 0 || fs.work());
        fs.work();
    }
    assert_eq!(read(&fs, new, 0, 1).unwrap(), [5]);
}

#[test]
fn what_waits_for_files_may_go_on_on_another_cpu() {
    fn can_move<T: Send>(_: &T) {}
    machine!(mm, cpu, 512, 2);
    let _ = &cpu;
    let id = file(&mm, 0);
    let here: fn() -> &'static guest_sync::Cpu = || panic!("never called");
    can_move(&mm.truncate(here, id, 0));
    can_move(&mm.sync(here, id));
    let mut ahead = ReadAhead::default();
    let to = (crate::SpaceId(core::num::NonZeroU32::MIN), 0);
    can_move(&mm.read_file_to_user(here, id, &mut ahead, (0, 1), to));
}

#[test]
fn one_who_waited_for_a_page_puts_none_there_when_the_file_was_cut_off_meanwhile() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 8 * PAGE as u64);
    fs.preset(id, &[6; 8]);
    fs.disk.break_block(Fault::Read, fs.block(id, 5).unwrap());
    let mut ahead = ReadAhead::default();
    let mut reader =
        std::pin::pin!(mm.read_file(&cpu, id, &mut ahead, (5 * PAGE as u64, PAGE), |_, _| Ok(())));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    // What was read ahead fails, so that the reader would read once more: but first the file is cut off.
    assert!(reader.as_mut().poll(&mut context).is_pending());
    fs.run(mm.truncate(&cpu, id, PAGE as u64)).unwrap();
    fs.forget(id, 1);
    assert_eq!(fs.run(reader), Ok(0), "nothing is there any more");
    assert_eq!(mm.cached_pages(id), 0, "no page beyond the end");
    write(&fs, id, 5 * PAGE as u64, &[8; PAGE]).unwrap();
    fs.run(mm.sync(&cpu, id)).unwrap();
    let block = fs
        .block(id, 5)
        .expect("a block of its own, not the one that was given up");
    assert_eq!(fs.disk.contents(block)[0], 8);
}
