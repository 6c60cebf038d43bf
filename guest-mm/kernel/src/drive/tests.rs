//! Jobs against a driver that is played by the test.

use super::*;
use crate::executor::alone;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};
use guest_mm::Pfn;
use guest_mm::disk::BlockNr;
use guest_virtio::block::{BlockError, Cache, Operation};

fn info(max_segments: u16, max_segment_len: u32) -> DiskInfo {
    DiskInfo {
        capacity_sectors: 804,
        access: Access::ReadWrite,
        cache: Cache::Writeback,
        max_segments,
        max_segment_len,
    }
}

fn pages(numbers: &[u32]) -> Vec<Pfn> {
    numbers.iter().copied().map(Pfn::new).collect()
}

/// Segments of a piece, in pages: first and number.
fn shape(piece: &Piece) -> Vec<(u64, u32)> {
    let segments = piece.data.iter();
    segments
        .map(|segment| (segment.start.raw() / 4096, segment.len / 4096))
        .collect()
}

/// A request whose results are counted: successes, and failures.
fn counted(drive: &Drive, request: Request) -> Arc<[AtomicU32; 2]> {
    let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let count = counts.clone();
    drive.submit(
        request,
        Box::new(move |result: Result<(), IoError>| {
            count[usize::from(result.is_err())].fetch_add(1, Ordering::Relaxed);
        }),
    );
    counts
}

fn seen(counts: &[AtomicU32; 2]) -> [u32; 2] {
    [0, 1].map(|index: usize| counts[index].load(Ordering::Relaxed))
}

#[test]
fn whole_blocks_of_a_disk_are_counted() {
    assert_eq!(Drive::new(info(4, 4096)).nr_blocks(), 100);
}

#[test]
fn frames_that_follow_each_other_are_one_segment_up_to_the_largest_that_is_taken() {
    let drive = Drive::new(info(8, 3 * 4096 + 512));
    let _counts = counted(
        &drive,
        Request::Write(BlockNr(5), pages(&[10, 11, 12, 13, 20, 19])),
    );
    let mut job = drive.next_job().unwrap();
    let piece = job.next_piece(&drive.info()).unwrap();
    assert_eq!((piece.operation, piece.sector), (Operation::Write, 40));
    assert_eq!(shape(&piece), [(10, 3), (13, 1), (20, 1), (19, 1)]);
}

#[test]
fn a_request_of_more_segments_than_are_taken_goes_in_pieces_and_is_done_once() {
    let drive = Drive::new(info(2, u32::MAX));
    let counts = counted(&drive, Request::Read(BlockNr(1), pages(&[3, 5, 6, 9, 8])));
    let mut job = drive.next_job().unwrap();
    let mut pieces = Vec::new();
    loop {
        let piece = job.next_piece(&drive.info()).unwrap();
        pieces.push((piece.sector / BLOCK_SECTORS, shape(&piece)));
        assert_eq!(seen(&counts), [0, 0]);
        match job.end_piece(Ok(())) {
            Some(rest) => job = rest,
            None => break,
        }
    }
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[0], (1, [(3, 1), (5, 2)].to_vec()));
    assert_eq!(pieces[1], (4, [(9, 1), (8, 1)].to_vec()));
    assert_eq!(seen(&counts), [1, 0]);
}

#[test]
fn what_a_disk_forgets_is_asked_again_three_times_and_then_fails() {
    let drive = Drive::new(info(2, u32::MAX));
    let counts = counted(&drive, Request::Read(BlockNr(7), pages(&[1, 3, 5])));
    let mut job = drive.next_job().unwrap();
    job.next_piece(&drive.info()).unwrap();
    // What was done before the disk was reset is not repeated.
    let mut job = job.end_piece(Ok(())).unwrap();
    for _ in 0..3 {
        assert_eq!(job.next_piece(&drive.info()).unwrap().sector, 72);
        job = job.end_piece(Err(BlockError::Lost)).unwrap();
    }
    assert_eq!(seen(&counts), [0, 0]);
    assert!(job.end_piece(Err(BlockError::Lost)).is_none());
    assert_eq!(seen(&counts), [0, 1]);
}

#[test]
fn an_error_of_the_disk_is_one_of_the_request() {
    let drive = Drive::new(info(2, u32::MAX));
    let counts = counted(&drive, Request::Flush);
    let mut job = drive.next_job().unwrap();
    let piece = job.next_piece(&drive.info()).unwrap();
    assert_eq!((piece.operation, piece.data.len()), (Operation::Flush, 0));
    assert!(job.end_piece(Err(BlockError::Failed)).is_none());
    assert_eq!(seen(&counts), [0, 1]);
}

#[test]
fn blocks_beyond_all_numbers_and_disks_that_take_less_than_a_page_are_refused() {
    for (block, len) in [(u64::MAX, 4096), (u64::MAX / 8 + 1, 4096), (0, 4095)] {
        let drive = Drive::new(info(2, len));
        let counts = counted(&drive, Request::Read(BlockNr(block), pages(&[1])));
        let mut job = drive.next_job().unwrap();
        assert_eq!(job.next_piece(&drive.info()), None);
        job.fail();
        assert_eq!(seen(&counts), [0, 1]);
    }
}

#[test]
fn one_who_waits_is_woken_with_the_result_and_the_disks_task_by_the_request() {
    let executor = alone();
    let drive = Rc::new(Drive::new(info(2, u32::MAX)));
    let result = Rc::new(Cell::new(None));
    let (asker, got) = (drive.clone(), result.clone());
    let server = drive.clone();
    executor
        .spawn(async move {
            for _ in 0..2 {
                let seen = server.asked();
                let Some(job) = server.next_job() else {
                    server.asked_after(seen).await;
                    continue;
                };
                let done = job.end_piece(Err(BlockError::Failed));
                assert!(done.is_none());
            }
        })
        .unwrap();
    executor.run_ready();
    executor
        .spawn(async move { got.set(Some(asker.request(Request::Flush).await)) })
        .unwrap();
    while executor.run_ready() > 0 {}
    assert_eq!(result.get(), Some(Err(IoError)));
}

#[test]
fn everything_that_waits_for_a_disk_that_is_gone_fails() {
    let drive = Drive::new(info(2, u32::MAX));
    let first = counted(&drive, Request::Flush);
    let second = counted(&drive, Request::Flush);
    drive.fail_all();
    assert_eq!((seen(&first), seen(&second)), ([0, 1], [0, 1]));
    assert!(drive.next_job().is_none());
}
