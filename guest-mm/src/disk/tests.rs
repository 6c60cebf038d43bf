//! What the simulated disk promises, and what it does not.

use std::vec;
use std::vec::Vec;

use super::{BlockDevice, BlockNr, Fault, IoError, Refused, Request, SimulatedDisk};
use crate::frames::Frames;
use crate::host::HostFrames;
use crate::pfn::{PAGE_BYTES, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};

/// Eight pages, page i filled with i + 1.
fn pages() -> (HostFrames, Vec<Pfn>) {
    let mut frames = HostFrames::new();
    frames.plug(PfnRange::new(Pfn::new(0), PAGEBLOCK_NR_PAGES).unwrap());
    let pages: Vec<Pfn> = (0..8).map(Pfn::new).collect();
    for (pfn, byte) in pages.iter().zip(1..) {
        frames.write_bytes(*pfn, 0, &[byte; PAGE_BYTES]);
    }
    (frames, pages)
}

fn run(
    disk: &SimulatedDisk<u32>,
    frames: &HostFrames,
    requests: impl IntoIterator<Item = Request>,
) -> Vec<Result<(), IoError>> {
    let mut results = Vec::new();
    for (token, request) in (0..).zip(requests) {
        disk.submit(request, token).unwrap();
        assert!(disk.step(frames, 0));
        let (back, result) = disk.completed().unwrap();
        assert_eq!(back, token);
        results.push(result);
    }
    results
}

fn first_byte(disk: &SimulatedDisk<u32>, block: u64) -> u8 {
    disk.contents(BlockNr(block))[0]
}

#[test]
fn what_is_written_is_read() {
    let (frames, pages) = pages();
    let disk = SimulatedDisk::new(16, 4);
    let write = Request::Write(BlockNr(5), pages[..3].to_vec());
    let read = Request::Read(BlockNr(5), pages[3..6].to_vec());
    assert_eq!(run(&disk, &frames, [write, read]), [Ok(()), Ok(())]);
    for (pfn, byte) in pages[3..6].iter().zip(1..) {
        let mut bytes = [0; PAGE_BYTES];
        frames.read_bytes(*pfn, 0, &mut bytes);
        assert_eq!(bytes, [byte; PAGE_BYTES]);
    }
}

#[test]
fn requests_are_done_in_the_order_that_is_chosen() {
    let (frames, pages) = pages();
    let disk = SimulatedDisk::new(16, 4);
    for (token, page) in (0..).zip(&pages[..3]) {
        disk.submit(Request::Write(BlockNr(0), vec![*page]), token)
            .unwrap();
    }
    for choice in [1, 5, 0] {
        assert!(disk.step(&frames, choice));
    }
    assert!(!disk.step(&frames, 0));
    let order: Vec<u32> = std::iter::from_fn(|| disk.completed())
        .map(|(token, _)| token)
        .collect();
    assert_eq!(order, [1, 2, 0]);
    assert_eq!(first_byte(&disk, 0), 1, "the last one done");
}

#[test]
fn what_does_not_fit_comes_back() {
    let (_, pages) = pages();
    let disk = SimulatedDisk::new(4, 1);
    let write = |block, nr: usize| Request::Write(BlockNr(block), pages[..nr].to_vec());
    for bad in [write(4, 1), write(3, 2), write(u64::MAX, 2), write(0, 0)] {
        assert_eq!(disk.submit(bad, 7), Err((Refused::OutOfRange, 7)));
    }
    assert_eq!(disk.submit(write(3, 1), 1), Ok(()));
    assert_eq!(disk.submit(Request::Flush, 2), Err((Refused::Full, 2)));
}

#[test]
fn a_fault_fails_what_meets_it_and_nothing_else() {
    let (frames, pages) = pages();
    let disk = SimulatedDisk::new(16, 4);
    disk.break_block(Fault::Write, BlockNr(1));
    let write = || Request::Write(BlockNr(0), pages[..3].to_vec());
    let read = || Request::Read(BlockNr(0), pages[3..6].to_vec());
    assert_eq!(run(&disk, &frames, [write(), read()]), [Err(IoError), Ok(())]);
    assert_eq!([0, 1, 2].map(|block| first_byte(&disk, block)), [1, 0, 0]);
    disk.mend();
    disk.break_block(Fault::Read, BlockNr(2));
    assert_eq!(run(&disk, &frames, [write(), read()]), [Ok(()), Err(IoError)]);
}

#[test]
fn power_takes_what_was_not_flushed_and_only_that() {
    let (frames, pages) = pages();
    let disk = SimulatedDisk::new(16, 4);
    let write = |block, page: usize| Request::Write(BlockNr(block), vec![pages[page]]);
    run(&disk, &frames, [write(0, 0), write(1, 1), Request::Flush]);
    run(&disk, &frames, [write(0, 2), write(1, 3), write(2, 4)]);
    disk.submit(write(3, 5), 0).unwrap();
    let mut kept = [false, true, false].into_iter();
    disk.lose_power(|| kept.next().unwrap());
    assert_eq!([0, 1, 2, 3].map(|block| first_byte(&disk, block)), [1, 4, 0, 0]);
    assert_eq!(disk.under_way(), 0);
}

#[test]
fn a_flush_is_for_what_was_answered_before_it() {
    let (frames, pages) = pages();
    let disk = SimulatedDisk::new(16, 4);
    let write = |block, page: usize| Request::Write(BlockNr(block), vec![pages[page]]);
    run(&disk, &frames, [write(0, 0)]);
    disk.submit(Request::Flush, 1).unwrap();
    disk.submit(write(1, 1), 2).unwrap();
    // The write first, then the flush.
    assert!(disk.step(&frames, 1) && disk.step(&frames, 0));
    disk.lose_power(|| false);
    assert_eq!([0, 1].map(|block| first_byte(&disk, block)), [1, 0]);
}
