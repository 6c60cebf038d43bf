//! Against a map of the standard library, with power lost at every write, and with a disk that fails at every write.

mod disk;

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use self::disk::Disk;
use super::inode::{BLOCK_EXTENTS, INLINE_EXTENTS};
use super::{
    Blocks, Damage, FormatError, FsError, Inode, InodeNr, Kind, Name, NameError, Volume, check, run,
};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE};

/// Numbers that repeat with the seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit)).unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Files by name, in the root directory.
type Model = BTreeMap<String, Vec<u8>>;

/// One random change of file system and model alike.
fn change(volume: &mut Volume<Disk>, model: &mut Model, numbers: &mut Numbers) -> Result<(), FsError> {
    let text = format!("file{}", numbers.below(80));
    let known = model.contains_key(&text);
    if known && numbers.below(3) == 0 {
        let (number, left) = run(volume.unlink(InodeNr::ROOT, &name(&text)))?;
        assert_eq!(left, 0);
        run(volume.release(number))?;
        model.remove(&text);
        return Ok(());
    }
    let number = if known {
        run(volume.lookup(InodeNr::ROOT, &name(&text)))?
    } else {
        run(volume.create(InodeNr::ROOT, &name(&text), Kind::File))?
    };
    model.entry(text.clone()).or_default();
    let byte = u8::try_from(numbers.below(256)).unwrap();
    let bytes = vec![byte; numbers.below(20_000) as usize];
    run(volume.write_file(number, &bytes))?;
    model.insert(text, bytes);
    Ok(())
}

fn files(volume: &mut Volume<Disk>) -> Model {
    let records = run(volume.list(InodeNr::ROOT)).unwrap();
    let mut read = |record: &super::Record| {
        let name = String::from_utf8(record.name.as_bytes().to_vec()).unwrap();
        (name, run(volume.read_file(record.inode)).unwrap())
    };
    records.iter().map(&mut read).collect()
}

#[test]
fn a_new_file_system_is_empty_and_whole() {
    let disk = Disk::new(64);
    let volume = run(Volume::format(disk.clone())).unwrap();
    assert_eq!((volume.nr_blocks(), volume.generation()), (64, 1));
    let usage = run(check(disk)).unwrap();
    // Superblocks, inode map, inode block.
    assert_eq!((usage.files, usage.directories, usage.used_blocks), (0, 1, 4));
    assert_eq!(volume.nr_free(), 60, "blocks were lost");
}

#[test]
fn random_changes_are_found_again_after_a_mount() {
    for seed in 0..10 {
        let (disk, mut model, mut numbers) = (Disk::new(2048), Model::new(), Numbers::new(seed));
        let mut volume = run(Volume::format(disk.clone())).unwrap();
        for step in 0..150 {
            change(&mut volume, &mut model, &mut numbers).unwrap();
            if step % 10 == 0 {
                run(volume.commit()).unwrap();
                let some: Vec<InodeNr> = volume.inode_numbers().take(5).collect();
                assert!(some.into_iter().all(|number| volume.forget(number)));
            }
        }
        assert_eq!(files(&mut volume), model);
        run(volume.commit()).unwrap();
        let usage = run(check(disk.clone())).unwrap();
        assert_eq!(
            usage.used_blocks,
            usage.nr_blocks - volume.nr_free(),
            "seed {seed}: blocks were lost"
        );
        assert_eq!(
            files(&mut run(Volume::mount(disk)).unwrap()),
            model,
            "seed {seed}"
        );
    }
}

#[test]
fn whenever_the_power_goes_the_disk_has_one_of_two_commits() {
    for seed in 0..6 {
        let (disk, mut model, mut numbers) = (Disk::new(2048), Model::new(), Numbers::new(seed));
        let mut volume = run(Volume::format(disk.clone())).unwrap();
        for _ in 0..12 {
            let before = model.clone();
            for _ in 0..3 {
                // Contents that were overwritten in place are of neither commit: each file is written once.
                let text = format!("new{}", model.len());
                let number = run(volume.create(InodeNr::ROOT, &name(&text), Kind::File)).unwrap();
                let bytes = vec![7; numbers.below(10_000) as usize];
                run(volume.write_file(number, &bytes)).unwrap();
                model.insert(text, bytes);
            }
            // The commit is cut short after each of its writes and flushes, and those that were not flushed come and go.
            let total = 12;
            for cut in 0..total {
                let (copy, mut again) = copy_of(&disk, &volume);
                copy.good.set(Some(cut));
                let done = run(again.commit()).is_ok();
                let left = copy.after_power_loss(|| numbers.below(2) == 0);
                run(check(left.clone())).unwrap_or_else(|damage| panic!("seed {seed}, cut {cut}: {damage}"));
                let found = files(&mut run(Volume::mount(left)).unwrap());
                assert!(
                    found == model || (!done && found == before),
                    "seed {seed}, cut {cut}"
                );
            }
            run(volume.commit()).unwrap();
        }
    }
}

/// The same disk and the same file system once more.
fn copy_of(disk: &Disk, volume: &Volume<Disk>) -> (Disk, Volume<Disk>) {
    let copy = Disk::new(disk.nr_blocks);
    copy.durable.borrow_mut().clone_from(&disk.durable.borrow());
    copy.cache.borrow_mut().clone_from(&disk.cache.borrow());
    let again = volume.with_blocks(copy.clone());
    (copy, again)
}

#[test]
fn a_commit_that_fails_loses_no_change_and_no_block() {
    let (disk, mut model, mut numbers) = (Disk::new(2048), Model::new(), Numbers::new(3));
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    for _ in 0..30 {
        change(&mut volume, &mut model, &mut numbers).unwrap();
    }
    let free = volume.nr_free();
    // Metadata alone: two inode blocks and the map.
    for good in 0..3 {
        disk.good.set(Some(good));
        assert_eq!(run(volume.commit()), Err(FsError::Io));
        assert_eq!(volume.nr_free(), free);
    }
    disk.good.set(None);
    run(volume.commit()).unwrap();
    assert_eq!(files(&mut run(Volume::mount(disk.clone())).unwrap()), model);
    // Later and later, up to the superblock: from there on nobody knows what the disk has.
    let is_refused = (0..20).any(|good| {
        change(&mut volume, &mut model, &mut numbers).unwrap();
        disk.good.set(Some(good));
        assert_eq!(run(volume.commit()), Err(FsError::Io), "after {good}");
        disk.good.set(None);
        let again = run(volume.commit());
        assert!(matches!(again, Ok(()) | Err(FsError::ReadOnly)));
        again.is_err()
    });
    assert!(is_refused);
    let refused = run(volume.create(InodeNr::ROOT, &name("late"), Kind::File));
    assert_eq!(refused, Err(FsError::ReadOnly));
}

#[test]
fn what_cannot_be_read_any_more_fails_no_commit_of_what_is_in_memory() {
    let disk = Disk::new(400);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    // Three inode blocks; one inode of the second is in memory after a mount.
    for number in 0..40 {
        run(volume.create(InodeNr::ROOT, &name(&format!("f{number}")), Kind::File)).unwrap();
    }
    run(volume.commit()).unwrap();
    drop(volume);
    let mut volume = run(Volume::mount(disk.clone())).unwrap();
    let [known, other] = [20, 36].map(|number| InodeNr::new(number).unwrap());
    run(volume.inode(known)).unwrap();
    disk.is_unreadable.set(true);
    run(volume.set_size(known, 5000)).unwrap();
    run(volume.commit()).unwrap();
    assert_eq!(run(volume.inode(other)).err(), Some(FsError::Io));
    // Another one of the same block is there with it.
    assert_eq!(run(volume.inode(InodeNr::new(21).unwrap())).unwrap().size, 0);
    assert!(volume.forget(known) && volume.forget(InodeNr::new(21).unwrap()));
    assert_eq!(
        run(volume.inode(known)).err(),
        Some(FsError::Io),
        "with the last of them the block goes"
    );
    disk.is_unreadable.set(false);
    assert_eq!(run(volume.inode(known)).unwrap().size, 5000);
    run(check(disk)).unwrap();
}

#[test]
fn a_file_with_more_extents_than_its_inode_holds_is_read_as_it_was_written() {
    let disk = Disk::new(8192);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    let file = run(volume.create(InodeNr::ROOT, &name("holes"), Kind::File)).unwrap();
    let extents = 2 * (INLINE_EXTENTS + 2 * BLOCK_EXTENTS) as u64;
    run(volume.set_size(file, extents * PAGE_SIZE)).unwrap();
    for page in (0..extents).step_by(2) {
        let (block, is_new) = run(volume.allocate(file, page)).unwrap();
        assert!(is_new);
        run(disk.write(block, &[u8::try_from(page % 251).unwrap(); PAGE_BYTES])).unwrap();
    }
    run(volume.commit()).unwrap();
    let used = run(check(disk.clone())).unwrap().used_blocks;
    let mut again = run(Volume::mount(disk.clone())).unwrap();
    let read = run(again.read_file(file)).unwrap();
    for (page, bytes) in (0..).zip(read.chunks(PAGE_BYTES)) {
        let expected = if page % 2 == 0 {
            u8::try_from(page % 251).unwrap()
        } else {
            0
        };
        assert!(bytes.iter().all(|byte| *byte == expected), "page {page}");
    }
    run(again.set_size(file, 3 * PAGE_SIZE)).unwrap();
    run(again.commit()).unwrap();
    let usage = run(check(disk)).unwrap();
    assert!(
        usage.used_blocks < 10 && used > 1000,
        "{used} blocks, then {}",
        usage.used_blocks
    );
    assert_eq!(again.nr_free(), usage.nr_blocks - usage.used_blocks);
}

#[test]
fn a_full_file_system_can_still_be_emptied() {
    let disk = Disk::new(64);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    let file = run(volume.create(InodeNr::ROOT, &name("big"), Kind::File)).unwrap();
    let refused = run(volume.write_file(file, &vec![1; 70 * PAGE_BYTES]));
    assert_eq!(refused, Err(FsError::NoSpace));
    run(volume.commit()).unwrap();
    let (number, _) = run(volume.unlink(InodeNr::ROOT, &name("big"))).unwrap();
    run(volume.release(number)).unwrap();
    run(volume.commit()).unwrap();
    assert_eq!(run(check(disk)).unwrap().files, 0);
    assert!(volume.nr_free() > 55);
}

#[test]
fn a_file_without_a_name_stays_until_it_is_released_or_the_power_goes() {
    let disk = Disk::new(64);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    let file = run(volume.create(InodeNr::ROOT, &name("open"), Kind::File)).unwrap();
    run(volume.write_file(file, b"still there")).unwrap();
    run(volume.commit()).unwrap();
    assert_eq!(run(volume.unlink(InodeNr::ROOT, &name("open"))), Ok((file, 0)));
    run(volume.commit()).unwrap();
    assert_eq!(run(volume.read_file(file)).unwrap(), b"still there");
    let mut again = run(Volume::mount(disk.clone())).unwrap();
    assert_eq!(run(again.inode(file)).err(), Some(FsError::NoInode(file)));
    run(again.commit()).unwrap();
    assert_eq!(
        run(check(disk)).unwrap().used_blocks,
        5,
        "superblocks, map, inodes, an empty directory's block"
    );
}

#[test]
fn links_and_directories_keep_their_rules() {
    let disk = Disk::new(256);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    let root = InodeNr::ROOT;
    let dir = run(volume.create(root, &name("dir"), Kind::Directory)).unwrap();
    let file = run(volume.create(dir, &name("file"), Kind::File)).unwrap();
    run(volume.link(root, &name("other"), file)).unwrap();
    assert_eq!(
        run(volume.link(root, &name("loop"), dir)),
        Err(FsError::IsADirectory(dir))
    );
    assert_eq!(
        run(volume.link(root, &name("other"), file)),
        Err(FsError::Exists(file))
    );
    assert_eq!(
        run(volume.unlink(root, &name("dir"))),
        Err(FsError::NotEmpty(dir))
    );
    assert_eq!(
        run(volume.lookup(file, &name("x"))),
        Err(FsError::NotADirectory(file))
    );
    assert_eq!(run(volume.resolve(b"/dir//file")), Ok(file));
    assert_eq!(run(volume.resolve(b"/dir/none")), Err(FsError::NotFound));
    assert_eq!(run(volume.unlink(dir, &name("file"))), Ok((file, 1)));
    run(volume.commit()).unwrap();
    assert_eq!(
        run(check(disk.clone())).map(|usage| (usage.files, usage.directories)),
        Ok((1, 2))
    );
    run(volume.unlink(root, &name("dir"))).unwrap();
    run(volume.release(dir)).unwrap();
    run(volume.commit()).unwrap();
    assert_eq!(
        run(check(disk)).map(|usage| (usage.files, usage.directories)),
        Ok((1, 1))
    );
}

#[test]
fn names_are_what_a_directory_can_hold() {
    for (bytes, error) in [
        (&b""[..], NameError::Reserved),
        (b".", NameError::Reserved),
        (b"..", NameError::Reserved),
        (b"a/b", NameError::Byte(b'/')),
        (b"a\0", NameError::Byte(0)),
        (&[b'x'; 60], NameError::TooLong(60)),
    ] {
        assert_eq!(Name::new(bytes), Err(error));
    }
    assert_eq!(Name::new(&[b'x'; 59]).unwrap().as_bytes(), [b'x'; 59]);
}

#[test]
fn a_flipped_bit_in_metadata_is_found() {
    let (disk, mut model, mut numbers) = (Disk::new(512), Model::new(), Numbers::new(1));
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    for _ in 0..10 {
        change(&mut volume, &mut model, &mut numbers).unwrap();
    }
    run(volume.commit()).unwrap();
    let metadata: Vec<u32> = [volume.superblock.map.block()]
        .into_iter()
        .chain(volume.map.iter().flatten().map(|pointer| pointer.block()))
        .collect();
    for block in metadata {
        let at = numbers.below(4096) as usize;
        let flip = |disk: &Disk| disk.durable.borrow_mut().get_mut(&block).unwrap()[at] ^= 0x10;
        flip(&disk);
        let found = run(check(disk.clone()));
        let checksum = Damage::Unreadable(FsError::Format(FormatError::Checksum(block)));
        assert_eq!(found, Err(checksum));
        flip(&disk);
    }
    let newest = volume.superblock.block_nr();
    disk.durable.borrow_mut().get_mut(&newest).unwrap()[17] ^= 1;
    let older = run(check(disk)).map(|usage| usage.generation);
    assert!(
        older.is_err() || older == Ok(volume.generation() - 1),
        "{older:?}"
    );
}

#[test]
fn pages_are_found_through_extents() {
    let mut inode = Inode::empty(Kind::File);
    for block in [10, 11, 12, 0, 0, 20] {
        inode.push_block(block);
    }
    assert_eq!(inode.extents.len(), 3);
    let found: Vec<Option<u32>> = (0..7).map(|page| inode.block_of(page)).collect();
    assert_eq!(found, [Some(10), Some(11), Some(12), None, None, Some(20), None]);
    assert!(inode.blocks().eq([10, 11, 12, 20]));
}

#[test]
fn a_page_whose_data_is_still_to_be_written_is_a_hole_on_the_disk() {
    let (disk, bytes) = (Disk::new(64), [1, 2, 3, 4, 5, 6]);
    let mut volume = run(Volume::format(disk.clone())).unwrap();
    // What was on the blocks before is none of the file's business.
    for block in 4..64 {
        run(disk.write(block, &[0xEE; PAGE_BYTES])).unwrap();
    }
    let file = run(volume.create(InodeNr::ROOT, &name("file"), Kind::File)).unwrap();
    let mut blocks = Vec::new();
    for page in 0..6 {
        blocks.push(run(volume.allocate(file, page)).unwrap().0);
    }
    run(volume.grow(file, 5 * PAGE_SIZE)).unwrap();
    for page in [0, 2, 5] {
        run(disk.write(blocks[page], &[bytes[page]; PAGE_BYTES])).unwrap();
    }
    run(volume.commit_hiding(|number| match number == file {
        true => vec![1, 3, 4],
        false => Vec::new(),
    }))
    .unwrap();
    let after = disk.after_power_loss(|| true);
    let mut mounted = run(Volume::mount(after.clone())).unwrap();
    let found = run(mounted.read_file(file)).unwrap();
    let pages: Vec<u8> = found.chunks(PAGE_BYTES).map(|page| page[0]).collect();
    assert_eq!(pages, [1, 0, 3, 0, 0]);
    // It is as before in memory, and differs from the disk, so that the next commit writes it again.
    assert_eq!(volume.cached().1, 1);
    assert!(!volume.forget(file));
    for page in [1_usize, 3, 4] {
        assert_eq!(
            run(volume.allocate(file, page.try_into().unwrap())).unwrap(),
            (blocks[page], false)
        );
        run(disk.write(blocks[page], &[bytes[page]; PAGE_BYTES])).unwrap();
    }
    run(volume.commit()).unwrap();
    let mut mounted = run(Volume::mount(disk.after_power_loss(|| false))).unwrap();
    let found = run(mounted.read_file(file)).unwrap();
    let pages: Vec<u8> = found.chunks(PAGE_BYTES).map(|page| page[0]).collect();
    assert_eq!(pages, [1, 2, 3, 4, 5]);
    // The block beyond the end was never the file's on the disk, and goes with the next change of the size.
    assert_eq!(mounted.nr_free(), volume.nr_free() + 1);
    run(volume.set_size(file, 5 * PAGE_SIZE)).unwrap();
    run(volume.commit()).unwrap();
    assert_eq!(mounted.nr_free(), volume.nr_free());
}
