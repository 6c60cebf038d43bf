//! Disks on real files, with both engines.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use devices::block::{DiskAccess, DiskId, DiskRange, MAX_IN_FLIGHT};
use devices::mem::{BackendError, BlockBackend, BlockRun};
use devices::queue::Extent;
use devices::rate::{BucketSpec, RateSpec};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::machine::layout::{MIB, RamRange};
use crate::memory::{GuestRam, RegionLayout};
use crate::spec::{Backing, DiskCache, EngineChoice};

const ENGINES: [EngineChoice; 2] = [EngineChoice::IoUring, EngineChoice::Thread];
const DISK: usize = 1 << 20;
const BUFFER: u64 = MIB;

struct World {
    dir: TempDir,
    ram: GuestRam,
}

impl World {
    /// A guest with 32 MiB, and a file of 1 MiB, each sector of which holds its number.
    fn new() -> World {
        let ranges = [RamRange {
            gpa: 0,
            size: 32 * MIB,
        }];
        let world = World {
            dir: TempDir::new().unwrap(),
            ram: GuestRam::new(&ranges, Backing::Anonymous, &[]).unwrap(),
        };
        let bytes: Vec<u8> = (0..DISK)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        fs::write(world.path(), bytes).unwrap();
        world
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn spec(&self, engine: EngineChoice) -> DiskSpec {
        DiskSpec {
            path: self.path(),
            access: DiskAccess::ReadWrite,
            cache: DiskCache::Host,
            engine,
            id: DiskId::default(),
            rate: RateSpec::default(),
        }
    }

    fn open(&self, spec: &DiskSpec) -> Result<HostDisk, DiskError> {
        HostDisk::open(spec, self.ram.device_view().clone())
    }

    fn disk(&self, engine: EngineChoice) -> HostDisk {
        self.open(&self.spec(engine)).unwrap()
    }

    fn poke(&self, gpa: u64, bytes: &[u8]) {
        let memory = self.ram.device_view();
        memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = self.ram.device_view();
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }
}

fn extent(gpa: u64, len: usize) -> Extent {
    Extent { gpa, len }
}

/// Takes the ends of `count` operations, as the event loop does.
fn ends(disk: &mut HostDisk, count: usize) -> Vec<Finished> {
    let event = disk.event().unwrap();
    let epoll = Epoll::new().unwrap();
    let readable = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), readable)
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut ends = Vec::new();
    disk.commit().unwrap();
    while ends.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} have ended", ends.len());
        // The kernel may interrupt the wait to finish an operation.
        let _ = epoll.wait(1000, &mut [EpollEvent::default()]);
        let _ = event.read();
        while let Some(end) = disk.finished().unwrap() {
            ends.push(end);
        }
        disk.commit().unwrap();
    }
    ends
}

fn run_to_end(disk: &mut HostDisk, operation: Operation) -> Result<(), OperationError> {
    disk.submit(Tag(7), operation);
    let ends = ends(disk, 1);
    assert_eq!(ends[0].tag, Tag(7));
    ends[0].result
}

fn zeroes(offset: u64, len: u64, unmap: Unmap) -> Operation {
    Operation::WriteZeroes(DiskRange { offset, len }, unmap)
}

#[test]
fn each_engine_is_the_one_that_was_asked_for() {
    for (choice, kind) in ENGINES.iter().zip([EngineKind::IoUring, EngineKind::Thread]) {
        assert_eq!(World::new().disk(*choice).engine(), kind);
    }
    assert_eq!(
        World::new().disk(EngineChoice::Auto).engine(),
        EngineKind::IoUring
    );
}

#[test]
fn a_thread_takes_over_where_the_kernel_refuses_io_uring_unless_nothing_else_will_do() {
    let world = World::new();
    // More entries than any kernel gives (`IORING_MAX_ENTRIES`): a refusal by the kernel itself.
    let open = |engine| {
        let memory = world.ram.device_view().clone();
        HostDisk::with_ring_of(&world.spec(engine), memory, 1 << 20)
    };
    assert!(matches!(
        open(EngineChoice::IoUring),
        Err(DiskError::Engine { .. })
    ));
    let mut disk = open(EngineChoice::Auto).unwrap();
    assert_eq!(disk.engine(), EngineKind::Thread);
    let into = vec![extent(BUFFER, 512)];
    assert_eq!(
        run_to_end(&mut disk, Operation::Read { offset: 512, into }),
        Ok(())
    );
    assert_eq!(world.peek(BUFFER, 512), [1; 512]);
}

#[test]
fn reads_and_writes_go_between_the_file_and_scattered_memory() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        let into = vec![extent(BUFFER, 1000), extent(BUFFER + 0x10_0000, 536)];
        assert_eq!(
            run_to_end(&mut disk, Operation::Read { offset: 1024, into }),
            Ok(())
        );
        let expected = fs::read(world.path()).unwrap()[1024..1024 + 1536].to_vec();
        let mut found = world.peek(BUFFER, 1000);
        found.extend(world.peek(BUFFER + 0x10_0000, 536));
        assert_eq!(found, expected);
        assert_eq!(world.peek(BUFFER + 1000, 8), [0; 8], "nothing beyond");

        world.poke(BUFFER, &[0xaa; 1024]);
        let from = vec![extent(BUFFER + 512, 512), extent(BUFFER, 512)];
        assert_eq!(
            run_to_end(&mut disk, Operation::Write { offset: 0, from }),
            Ok(())
        );
        assert_eq!(run_to_end(&mut disk, Operation::Flush), Ok(()));
        let file = fs::read(world.path()).unwrap();
        assert!(file[..1024].iter().all(|byte| *byte == 0xaa));
        assert_eq!((file[1024], file.len()), (2, DISK));
    }
}

#[test]
fn as_many_operations_as_a_queue_has_entries_all_end_once() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        for tag in 0..MAX_IN_FLIGHT {
            let offset = 512 * tag as u64;
            let into = vec![extent(BUFFER + offset, 512)];
            disk.submit(Tag(tag), Operation::Read { offset, into });
        }
        let ends = ends(&mut disk, MAX_IN_FLIGHT);
        let mut tags: Vec<usize> = ends.iter().map(|end| end.tag.0).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..MAX_IN_FLIGHT).collect::<Vec<_>>());
        assert!(ends.iter().all(|end| end.result.is_ok()));
        let file = fs::read(world.path()).unwrap();
        assert_eq!(
            world.peek(BUFFER, 512 * MAX_IN_FLIGHT),
            file[..512 * MAX_IN_FLIGHT]
        );
        assert_eq!(disk.finished().unwrap(), None);
    }
}

#[test]
fn a_file_that_became_shorter_fails_reads_beyond_its_end_and_only_those() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        fs::File::options()
            .write(true)
            .open(world.path())
            .unwrap()
            .set_len(4096)
            .unwrap();
        let read = |offset| Operation::Read {
            offset,
            into: vec![extent(BUFFER, 1024)],
        };
        assert_eq!(run_to_end(&mut disk, read(8192)), Err(OperationError::Failed));
        assert_eq!(
            run_to_end(&mut disk, read(4096 - 512)),
            Err(OperationError::Failed)
        );
        assert_eq!(run_to_end(&mut disk, read(0)), Ok(()));
    }
}

#[test]
fn memory_that_the_guest_does_not_have_fails_the_operation_and_is_not_touched() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        let into = vec![extent(BUFFER, 512), extent(32 * MIB - 256, 512)];
        let read = Operation::Read { offset: 512, into };
        assert_eq!(run_to_end(&mut disk, read), Err(OperationError::Failed));
        assert_eq!(world.peek(BUFFER, 512), [0; 512]);
    }
}

#[test]
fn write_zeroes_reads_back_as_zeros_and_keeps_or_gives_back_the_storage_as_asked() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        let blocks = || fs::metadata(world.path()).unwrap().blocks();
        fs::File::open(world.path()).unwrap().sync_all().unwrap();
        let before = blocks();
        assert_eq!(
            run_to_end(&mut disk, zeroes(65536, 65536, Unmap::Forbidden)),
            Ok(())
        );
        assert_eq!(run_to_end(&mut disk, Operation::Flush), Ok(()));
        assert!(blocks() >= before, "{} blocks of {before}", blocks());
        assert_eq!(
            run_to_end(&mut disk, zeroes(262_144, 131_072, Unmap::Allowed)),
            Ok(())
        );
        assert_eq!(run_to_end(&mut disk, Operation::Flush), Ok(()));
        assert!(blocks() + 250 <= before, "{} blocks of {before}", blocks());
        let file = fs::read(world.path()).unwrap();
        assert_eq!(file.len(), DISK);
        for (at, byte) in file.iter().enumerate() {
            let cleared = (65536..131_072).contains(&at) || (262_144..393_216).contains(&at);
            let expected = if cleared { 0 } else { at / 512 % 251 };
            assert_eq!(usize::from(*byte), expected, "byte {at}");
        }
    }
}

#[test]
fn a_discard_gives_storage_back() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        let limits = disk.limits();
        assert!(
            limits
                .discard
                .is_some_and(|discard| discard.alignment_sectors >= 1)
        );
        fs::File::open(world.path()).unwrap().sync_all().unwrap();
        let before = fs::metadata(world.path()).unwrap().blocks();
        let range = DiskRange {
            offset: 0,
            len: DISK as u64,
        };
        assert_eq!(run_to_end(&mut disk, Operation::Discard(range)), Ok(()));
        let after = fs::metadata(world.path()).unwrap();
        assert!(
            after.blocks() < before / 2,
            "{} blocks of {before}",
            after.blocks()
        );
        assert_eq!(after.len(), DISK as u64);
    }
}

#[test]
fn a_disk_that_is_dropped_lets_what_is_under_way_finish() {
    for engine in ENGINES {
        let world = World::new();
        let mut disk = world.disk(engine);
        world.poke(BUFFER, &vec![0x5a; DISK]);
        for tag in 0..64 {
            let offset = 16384 * tag as u64;
            let from = vec![extent(BUFFER + offset, 16384)];
            disk.submit(Tag(tag), Operation::Write { offset, from });
        }
        disk.commit().unwrap();
        drop(disk);
        let file = fs::read(world.path()).unwrap();
        assert!(file.iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn direct_io_goes_past_the_hosts_cache() {
    for engine in ENGINES {
        let world = World::new();
        let spec = DiskSpec {
            cache: DiskCache::None,
            ..world.spec(engine)
        };
        let mut disk = world.open(&spec).unwrap();
        let block = disk.limits().block_size as usize;
        assert!(block >= 512 && block.is_power_of_two());
        let offset = 8 * block as u64;
        world.poke(BUFFER, &vec![0x77; block]);
        let from = vec![extent(BUFFER, block)];
        assert_eq!(run_to_end(&mut disk, Operation::Write { offset, from }), Ok(()));
        let into = vec![extent(BUFFER + MIB, block)];
        assert_eq!(run_to_end(&mut disk, Operation::Read { offset, into }), Ok(()));
        assert_eq!(world.peek(BUFFER + MIB, block), vec![0x77; block]);
        assert_eq!(fs::read(world.path()).unwrap()[8 * block], 0x77);
    }
}

#[test]
fn a_disk_that_is_written_has_one_user() {
    let world = World::new();
    let read_only = DiskSpec {
        access: DiskAccess::ReadOnly,
        ..world.spec(EngineChoice::Auto)
    };
    let writer = world.disk(EngineChoice::Auto);
    for spec in [&world.spec(EngineChoice::Auto), &read_only] {
        assert!(matches!(world.open(spec), Err(DiskError::InUse { .. })));
    }
    drop(writer);
    let reader = world.open(&read_only).unwrap();
    assert!(reader.limits().discard.is_none());
    assert!(world.open(&read_only).is_ok(), "readers share");
    assert!(matches!(
        world.open(&world.spec(EngineChoice::Auto)),
        Err(DiskError::InUse { .. })
    ));
}

#[test]
fn what_is_no_disk_is_refused_with_the_rule() {
    let world = World::new();
    let refusal = |path: PathBuf| {
        let spec = DiskSpec {
            path,
            access: DiskAccess::ReadOnly,
            ..world.spec(EngineChoice::Auto)
        };
        world.open(&spec).unwrap_err().to_string()
    };
    let directory = world.dir.path().to_owned();
    let text = directory.display().to_string();
    assert_eq!(
        refusal(directory),
        format!("disk {text}: neither a file nor a block device")
    );
    let odd = world.dir.path().join("odd");
    fs::write(&odd, [0; 513]).unwrap();
    assert!(refusal(odd.clone()).ends_with("513 bytes are not a positive multiple of 512, a disk's block"));
    fs::write(&odd, []).unwrap();
    assert!(refusal(odd).contains(": 0 bytes are not"));
    assert!(refusal("/nowhere/disk".into()).starts_with("disk /nowhere/disk: No such file"));
}

#[test]
fn a_block_that_the_disk_is_at_cannot_be_unplugged_until_its_end_was_taken() {
    const REGION: u64 = 4 << 30;
    const BLOCK: u64 = 2 * MIB;
    for engine in ENGINES {
        let mut world = World::new();
        let layout = RegionLayout {
            start: REGION,
            size: 4 * BLOCK,
            block_size: BLOCK,
        };
        let ranges = [RamRange {
            gpa: 0,
            size: 32 * MIB,
        }];
        world.ram = GuestRam::new(&ranges, Backing::Anonymous, &[layout.into()]).unwrap();
        let mut blocks = world.ram.backend(0).unwrap();
        let run = |first, count| BlockRun::new(first, count).unwrap();
        blocks.plug(run(0, 4)).unwrap();
        let mut disk = world.disk(engine);
        // The second buffer is in two blocks.
        let into = vec![extent(REGION, 512), extent(REGION + 3 * BLOCK - 512, 1024)];
        disk.submit(Tag(0), Operation::Read { offset: 512, into });
        disk.commit().unwrap();
        for first in [0, 2, 3] {
            let refused = blocks.unplug(run(first, 1));
            assert!(matches!(refused, Err(BackendError::Busy)), "block {first}");
        }
        blocks.unplug(run(1, 1)).unwrap();
        assert_eq!(ends(&mut disk, 1)[0].result, Ok(()));
        assert_eq!(world.peek(REGION + 3 * BLOCK, 512), [3; 512]);
        blocks.unplug(run(2, 2)).unwrap();
        blocks.unplug(run(0, 1)).unwrap();
        let into = vec![extent(REGION, 512)];
        let read = Operation::Read { offset: 0, into };
        assert_eq!(run_to_end(&mut disk, read), Err(OperationError::Failed));
    }
}

/// A disk that may do two operations at once and then one in 20 ms.
fn limited(world: &World, engine: EngineChoice) -> HostDisk {
    let number = |number| std::num::NonZeroU64::new(number).unwrap();
    let ops = Some(BucketSpec {
        size: number(1),
        one_time_burst: 1,
        refill_time: number(20),
    });
    let rate = RateSpec {
        ops,
        ..RateSpec::default()
    };
    let disk = world.open(&DiskSpec {
        rate,
        ..world.spec(engine)
    });
    disk.unwrap()
}

#[test]
fn what_a_limit_puts_off_is_admitted_when_the_timer_has_gone_off() {
    let world = World::new();
    let mut disk = limited(&world, EngineChoice::Auto);
    assert_eq!(disk.admit(&Operation::Flush), Admission::Now);
    assert_eq!(disk.admit(&Operation::Flush), Admission::Now);
    let epoll = Epoll::new().unwrap();
    let readable = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, disk.timer(), readable).unwrap();
    let goes_off = |within| epoll.wait(within, &mut [EpollEvent::default()]).unwrap() == 1;
    for _ in 0..3 {
        while disk.admit(&Operation::Flush) == Admission::Later {
            assert!(goes_off(60_000), "the timer is armed");
            disk.time_has_come();
            assert!(!goes_off(0), "once");
        }
    }
}

#[test]
fn a_limit_that_is_taken_away_admits_at_once() {
    let world = World::new();
    let mut disk = limited(&world, EngineChoice::Auto);
    // The bucket is full until the burst has been used up.
    while disk.admit(&Operation::Flush) == Admission::Now {}
    let old = disk.rate();
    disk.set_rate(RateSpec::default());
    for _ in 0..1000 {
        assert_eq!(disk.admit(&Operation::Flush), Admission::Now);
    }
    disk.set_rate(old);
    assert_eq!(disk.rate(), old);
}
