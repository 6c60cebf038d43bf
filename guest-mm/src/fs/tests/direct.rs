//! Direct I/O on the simulated disk: the page cache and the disk agree, and what fails leaves the file as it was.

use super::mounted::{Fs, read, with_fs, write};
use super::world::{Disk, Durable, World};
use crate::disk::{BlockNr, Fault};
use crate::fs::mounted::Missing;
use crate::fs::pagefs::{check, run};
use crate::mm::mapping::FileError;
use crate::pfn::PAGE_BYTES;
use crate::{Frames, Gfp, Order, Pfn};
use std::vec;
use std::vec::Vec;

const PAGE: u64 = PAGE_BYTES as u64;

/// Frames that stay where they are, each full of one byte.
fn frames(world: &World<'_, '_>, bytes: &[u8]) -> Vec<Pfn> {
    let frame = |byte: &u8| {
        let pfn = world
            .mm
            .phys
            .alloc_pages(world.cpu, Gfp::KERNEL, Order::ZERO)
            .unwrap();
        world.mm.frames.write_bytes(pfn, 0, &[*byte; PAGE_BYTES]);
        pfn
    };
    bytes.iter().map(frame).collect()
}

fn free(world: &World<'_, '_>, frames: Vec<Pfn>) {
    for pfn in frames {
        world.mm.phys.free_pages(world.cpu, pfn).unwrap();
    }
}

/// The first byte of each page, all of which must be the same.
async fn pages(fs: &Fs<'_, '_>, world: &World<'_, '_>, path: &[u8], nr: usize) -> Vec<u8> {
    let file = fs.open(path, Missing::Fail).await.unwrap();
    let into = frames(world, &vec![0xEE; nr]);
    let bytes = fs.read_direct(&file, 0, &into).await.unwrap();
    let page = |pfn: &Pfn| {
        let mut page = [0; PAGE_BYTES];
        world.mm.frames.read_bytes(*pfn, 0, &mut page);
        assert!(page.iter().all(|byte| *byte == page[0]));
        page[0]
    };
    let mut found: Vec<u8> = into.iter().map(page).collect();
    found.truncate(usize::try_from(bytes.div_ceil(PAGE)).unwrap());
    // The same through the cache.
    let cached = read(fs, &file).await.unwrap();
    assert_eq!(cached.len() as u64, fs.size(&file));
    assert!(
        cached
            .iter()
            .zip(0..)
            .all(|(byte, at)| *byte == found[at / PAGE_BYTES])
    );
    fs.close(&file).await;
    free(world, into);
    found
}

#[test]
fn what_is_written_past_the_cache_is_found_in_it_and_the_other_way_round() {
    let disk = Disk::new(400, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"f", Missing::Create).await.unwrap();
        // Behind a hole, the last page before which is used in part.
        write(fs, &file, 0, &[9; 4096 + 100]).await.unwrap();
        let from = frames(world, &[1, 2, 3]);
        fs.write_direct(&file, 4, &from).await.unwrap();
        assert_eq!(fs.size(&file), 7 * PAGE);
        fs.set_size(&file, PAGE).await.unwrap();
        fs.write_direct(&file, 4, &from).await.unwrap();
        assert_eq!(pages(fs, world, b"f", 9).await, [9, 0, 0, 0, 1, 2, 3]);
        // Over what is in memory, clean or dirty, and into the hole.
        write(fs, &file, 4 * PAGE, &[7; 4096]).await.unwrap();
        fs.write_direct(&file, 3, &from).await.unwrap();
        assert_eq!(pages(fs, world, b"f", 7).await, [9, 0, 0, 1, 2, 3, 3]);
        write(fs, &file, 5 * PAGE, &[8; 4096]).await.unwrap();
        assert_eq!(pages(fs, world, b"f", 7).await, [9, 0, 0, 1, 2, 8, 3]);
        fs.fsync(&file).await.unwrap();
        free(world, from);
        fs.close(&file).await;
    });
    run(check(Durable::of(&disk))).unwrap();
}

#[test]
fn a_direct_write_that_fails_leaves_the_size_as_it_was_and_a_block_that_cannot_be_read_is_an_error() {
    let disk = Disk::new(400, 8);
    Durable::format(&disk);
    with_fs(&disk, async |fs, world| {
        let file = fs.open(b"f", Missing::Create).await.unwrap();
        let from = frames(world, &[1, 2]);
        fs.write_direct(&file, 0, &from).await.unwrap();
        fs.fsync(&file).await.unwrap();
        for block in 0..400 {
            disk.break_block(Fault::Write, BlockNr(block));
        }
        assert_eq!(fs.write_direct(&file, 2, &from).await, Err(FileError::Io));
        assert_eq!(fs.size(&file), 2 * PAGE);
        for block in 0..400 {
            disk.break_block(Fault::Read, BlockNr(block));
        }
        let into = frames(world, &[0, 0]);
        assert_eq!(fs.read_direct(&file, 0, &into).await, Err(FileError::Io));
        disk.mend();
        assert_eq!(pages(fs, world, b"f", 2).await, [1, 2]);
        free(world, from);
        free(world, into);
        fs.close(&file).await;
    });
    run(check(Durable::of(&disk))).unwrap();
}
