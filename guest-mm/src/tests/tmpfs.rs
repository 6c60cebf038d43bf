//! The file system without a disk: names, files that live as long as somebody has them, the limit, and words to wait on.

use std::vec;
use std::vec::Vec;

use guest_sync::Cpu;

use crate::fs::mounted::{Missing, WriteAt};
use crate::fs::{NameError, TmpFile, Tmpfs};
use crate::futex::FutexKey;
use crate::host::{HostFrames, HostMmu};
use crate::mm::mapping::FileError;
use crate::mm::{CopyError, FaultError, FileArea, FilePlace, Sharing};
use crate::tests::machine::{MIB, RW, TestMm, anonymous, machine, store};
use crate::tests::test_fs::TestFs;
use crate::{Backing, HugeAdvice, MapRequest, Place, SpaceId};

type TestTmpfs<'a, 'm> = Tmpfs<'a, 'm, HostFrames, HostMmu, &'a Cpu>;

const LIMIT: u64 = 64 * 4096;

fn map(mm: &TestMm<'_>, space: SpaceId, file: &TmpFile, pages: u64) -> u64 {
    let request = MapRequest {
        len: pages * 4096,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::File(FileArea::new(file.mapping(), 0, Sharing::Shared)),
    };
    mm.mmap(space, &request).unwrap()
}

/// Writes out of a program's memory and reads back into it.
fn copy(fs: &TestFs<'_, '_>, tmpfs: &TestTmpfs<'_, '_>, file: &TmpFile, bytes: &[u8]) -> Vec<u8> {
    let (mm, cpu) = (fs.mm, fs.cpu);
    let space = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(space, &anonymous(MIB, HugeAdvice::NoHuge)).unwrap();
    mm.write_user(cpu, space, va, bytes).unwrap();
    let write = tmpfs.write_from_user(file, (WriteAt::Offset(5), bytes.len()), (space, va), LIMIT);
    assert_eq!(fs.run(write), Ok((5 + bytes.len() as u64, bytes.len())));
    mm.write_user(cpu, space, va, &vec![0xFF; bytes.len()]).unwrap();
    let read = tmpfs.read_to_user(file, (5, bytes.len()), (space, va));
    assert_eq!(fs.run(read), Ok(bytes.len()));
    let mut found = vec![0; bytes.len()];
    mm.read_user(cpu, space, va, &mut found).unwrap();
    mm.destroy_space(cpu, space).unwrap();
    found
}

#[test]
fn a_file_lives_as_long_as_it_has_a_name_or_is_open_or_mapped() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let tmpfs: TestTmpfs<'_, '_> = Tmpfs::new(&mm, &cpu);
    let free = mm.phys.memory_stats().free_pages;
    assert_eq!(tmpfs.open(b"a", Missing::Fail).err(), Some(NameError::NotFound));
    let file = tmpfs.open(b"a", Missing::Create).unwrap();
    let text: Vec<u8> = (0..=250).cycle().take(9000).collect();
    assert_eq!(copy(&fs, &tmpfs, &file, &text), text);
    assert_eq!(
        tmpfs.open(b"a", Missing::Create).unwrap().mapping(),
        file.mapping()
    );
    assert_eq!(tmpfs.list(), [b"a".to_vec().into_boxed_slice()]);

    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, &file, 3);
    let child = mm.fork(&cpu, space).unwrap();
    tmpfs.remove(b"a").unwrap();
    assert_eq!(tmpfs.remove(b"a"), Err(NameError::NotFound));
    assert_eq!(fs.run(tmpfs.reap()), 0, "it is open");
    drop(file);
    assert_eq!(fs.run(tmpfs.reap()), 0, "it is mapped");
    mm.destroy_space(&cpu, space).unwrap();
    let mut found = [0; 4];
    mm.read_user(&cpu, child, va + 5, &mut found).unwrap();
    assert_eq!(
        (found, fs.run(tmpfs.reap())),
        ([0, 1, 2, 3], 0),
        "a child has it still"
    );
    mm.validate().unwrap();
    mm.destroy_space(&cpu, child).unwrap();
    assert_eq!((fs.run(tmpfs.reap()), tmpfs.nr_files()), (1, (0, 0)));
    assert_eq!(mm.mapping_ids().count(), 0);
    mm.validate().unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, free);
}

#[test]
fn names_are_plain_and_files_have_a_limit_between_them() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let tmpfs: TestTmpfs<'_, '_> = Tmpfs::new(&mm, &cpu);
    for name in [&b""[..], b"a/b", &[b'x'; 60]] {
        assert_eq!(tmpfs.open(name, Missing::Create).err(), Some(NameError::Invalid));
    }
    let [first, second] = [b"1", b"2"].map(|name| tmpfs.open(name, Missing::Create).unwrap());
    assert_eq!(fs.run(tmpfs.set_size(&first, LIMIT - 4096, LIMIT)), Ok(()));
    assert_eq!(
        fs.run(tmpfs.set_size(&second, 4097, LIMIT)),
        Err(FileError::NoSpace)
    );
    assert_eq!(fs.run(tmpfs.set_size(&second, 4096, LIMIT)), Ok(()));
    assert_eq!(tmpfs.size(&second), 4096);
    // What has no name any more counts as long as it is there; shared anonymous memory does not.
    tmpfs.remove(b"1").unwrap();
    assert_eq!(
        fs.run(tmpfs.set_size(&second, 8192, LIMIT)),
        Err(FileError::NoSpace)
    );
    drop(first);
    let shared = tmpfs.anonymous(1 << 30);
    assert_eq!(fs.run(tmpfs.reap()), 1);
    assert_eq!(fs.run(tmpfs.set_size(&second, 8192, LIMIT)), Ok(()));
    assert_eq!((tmpfs.size(&shared), tmpfs.nr_files()), (1 << 30, (1, 1)));
}

#[test]
fn a_word_of_shared_memory_is_the_same_for_all_and_of_private_memory_everybodys_own() {
    machine!(mm, cpu, 512, 2);
    let tmpfs: TestTmpfs<'_, '_> = Tmpfs::new(&mm, &cpu);
    let file = tmpfs.anonymous(8 * 4096);
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, &file, 8);
    let own = mm.mmap(space, &anonymous(4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, space, own, 5).unwrap();
    let child = mm.fork(&cpu, space).unwrap();
    let key = |id, va| mm.futex_key(id, va).unwrap();
    let at = |index, offset| FutexKey::Shared {
        place: FilePlace {
            mapping: file.mapping(),
            index,
        },
        offset,
    };
    assert_eq!(
        (key(space, va + 4104), key(child, va + 4104)),
        (at(1, 8), at(1, 8))
    );
    assert_ne!(key(space, own), key(child, own));
    let nowhere = CopyError::Fault {
        va: 0x5000,
        error: FaultError::NoArea { va: 0x5000 },
    };
    assert_eq!(mm.futex_key(space, 0x5000), Err(nowhere));
    assert_eq!(mm.futex_word(&cpu, child, own), Ok(5));

    // In a non-linear area the page counts that is shown, mapped or not.
    mm.remap_file_pages(&cpu, child, va, 4096, 7).unwrap();
    assert_eq!(key(child, va + 4), at(7, 4));
    store(&mm, &cpu, child, va, 9).unwrap();
    assert_eq!((key(child, va + 4), key(child, va + 4096)), (at(7, 4), at(1, 0)));
    assert_eq!(key(space, va + 7 * 4096 + 4), at(7, 4));
}
