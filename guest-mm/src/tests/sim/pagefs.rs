//! Files in the real file system, mounted over a simulated disk: its tasks, its disk's turns, and what is on that disk.

use core::cell::Cell;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use super::executor::{Executor, pause};
use super::files::NAMES;
use super::{Sim, count};
use crate::disk::{BlockDevice, BlockNr, Fault, IoError, Refused, Request, SimulatedDisk};
use crate::fs::mounted::{Age, Machine, MountFlags, Mounted};
use crate::fs::pagefs::{InodeNr, Kind, Name, Volume, check, run};
use crate::fs::tests::world::Durable;
use crate::fs::{Heap, Keep, pagefs::FsError};
use crate::host::{HostFrames, HostMmu};
use crate::mempool::ThisCpu;
use crate::mm::{FilePlace, MappingId, Mm};
use crate::tests::machine::TestMm;

/// Blocks of the disk.
const NR_BLOCKS: u64 = 4000;
/// Blocks of which some break now and then; the first two are superblocks, without which a file system is read-only for good.
const FRAGILE: core::ops::Range<u64> = 2..400;
/// How often the daemon writes back what is old, and how old that is. Turns.
const WRITE_BACK: (u64, u64) = (120, 200);

/// What became of a request, and who waits for it.
type Answer = Arc<SpinLock<(Option<Result<(), IoError>>, Option<Waker>)>>;
pub(super) type Disk = SimulatedDisk<(Answer, Keep)>;

/// What the file system runs on.
#[derive(Clone, Copy)]
pub(super) struct SimMachine<'m> {
    mm: &'m TestMm<'m>,
    cpu: &'m Cpu,
    disk: &'m Disk,
}

impl ThisCpu for SimMachine<'_> {
    fn this_cpu(&self) -> &Cpu {
        self.cpu
    }
}

impl<'m> Machine<'m> for SimMachine<'m> {
    type Frames = HostFrames;
    type Mmu = HostMmu;
    type Names = Heap;
    type Inodes = Heap;

    fn mm(&self) -> &Mm<'m, HostFrames, HostMmu> {
        self.mm
    }

    fn nr_blocks(&self) -> u64 {
        NR_BLOCKS
    }

    async fn request(&self, request: Request, keep: Keep) -> Result<(), IoError> {
        let answer = Answer::default();
        let mut token = (answer.clone(), keep);
        loop {
            match self.disk.submit(request.clone(), token) {
                Ok(()) => break,
                Err((Refused::OutOfRange, _)) => return Err(IoError),
                Err((Refused::Full, back)) => token = back,
            }
            pause().await;
        }
        poll_fn(|context| {
            let mut answer = answer.lock();
            answer.1 = Some(context.waker().clone());
            answer.0.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// See the module.
pub(super) struct PageFs<'m> {
    pub(super) mounted: Mounted<'m, SimMachine<'m>>,
    disk: &'m Disk,
    /// Pages that could not be written, as far as the models know.
    lost: Cell<u64>,
    /// A request of it has failed.
    pub(super) has_failed: Cell<bool>,
}

/// An empty disk.
pub(super) fn new_disk() -> Disk {
    let disk = SimulatedDisk::new(NR_BLOCKS, 16);
    Durable::format(&disk);
    let mut volume = run(Volume::mount(Durable::of(&disk))).unwrap();
    for name in NAMES {
        run(volume.create(InodeNr::ROOT, &Name::new(name).unwrap(), Kind::File)).unwrap();
    }
    run(volume.commit()).unwrap();
    disk
}

impl<'m> PageFs<'m> {
    pub(super) fn mount(mm: &'m TestMm<'m>, cpu: &'m Cpu, disk: &'m Disk, flags: MountFlags) -> Self {
        let machine = SimMachine { mm, cpu, disk };
        let mut mounting = core::pin::pin!(Mounted::mount(machine, Heap, Heap, flags));
        let mounted = loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(mounted) = mounting.as_mut().poll(&mut context) {
                break mounted.unwrap();
            }
            step((disk, &Cell::new(false)), mm, 0);
        };
        let (lost, has_failed) = (Cell::new(0), Cell::new(false));
        Self {
            mounted,
            disk,
            lost,
            has_failed,
        }
    }

    pub(super) fn spawn<'a>(&'a self, executor: &mut Executor<'a>, sim: &'a Sim<'_>) {
        for _ in 0..3 {
            executor.spawn_daemon(self.mounted.serve());
        }
        executor.spawn_daemon(write_back(self, sim));
    }

    /// The disk does something. False if it had nothing to do.
    pub(super) fn turn(&self, sim: &Sim<'_>) -> bool {
        if !sim.is_ending.get() && sim.one_in(20) {
            let block = FRAGILE.start + sim.below(FRAGILE.end - FRAGILE.start);
            let fault = if sim.one_in(3) { Fault::Write } else { Fault::Read };
            self.disk.break_block(fault, BlockNr(block));
        }
        if sim.is_ending.get() || sim.one_in(60) {
            self.disk.mend();
        }
        if sim.one_in(30) {
            let cache = self.mounted.inodes();
            let inodes = cache.give_up(sim.cpu, 1 + sim.below(3), &&self.mounted);
            count(&sim.seen.inodes_given_up, u32::try_from(inodes).unwrap());
            self.mounted.names().give_up(sim.below(4));
        }
        let choice = usize::try_from(sim.below(64)).unwrap();
        step((self.disk, &self.has_failed), sim.mm, choice)
    }

    /// Tells the models of pages that could not be written: right after that, while it is known whose they are.
    pub(super) fn note_lost(&self, sim: &Sim<'_>) {
        let lost = self.mounted.page_ops().lost;
        let before = self.lost.replace(lost);
        let mut named = 0;
        while let Some(FilePlace { mapping, index }) = self.mounted.take_lost_page() {
            named += 1;
            self.note_one_lost(sim, mapping, index);
        }
        assert_eq!(named, lost - before, "each page that is lost is named");
        count(&sim.seen.lost_pages, u32::try_from(named).unwrap());
    }

    /// Tells the model of the file whose page it was, if it is one of those: others have a word each that is looked at with what is known of errors.
    pub(super) fn note_one_lost(&self, sim: &Sim<'_>, mapping: MappingId, index: u32) {
        let name = self.mounted.name_of(mapping);
        let is_named = |known: &&[u8]| {
            name.as_ref()
                .is_some_and(|name| name.path.as_bytes().ends_with(known))
        };
        let nr = NAMES.iter().position(is_named);
        if let Some(nr) = nr {
            sim.files[nr].model.borrow_mut().lost(index);
        } else {
            sim.names.lost();
        }
    }

    pub(super) fn break_all(&self, fault: Fault) {
        FRAGILE.for_each(|block| self.disk.break_block(fault, BlockNr(block)));
    }

    pub(super) fn mend(&self) {
        self.disk.mend();
    }

    pub(super) fn lose_power(&self, kept: impl FnMut() -> bool) {
        self.disk.lose_power(kept);
    }

    /// What is in each of the files on the disk, which is whole.
    pub(super) fn on_disk(&self) -> Vec<Vec<u8>> {
        run(check(Durable::of(self.disk))).unwrap_or_else(|damage| panic!("{damage}"));
        let mut volume = run(Volume::mount(Durable::of(self.disk))).unwrap();
        let contents = NAMES.map(|name| {
            let number = run(volume.resolve(name)).unwrap();
            run(volume.read_file(number)).unwrap()
        });
        contents.into()
    }

    /// No file is left, on the disk or in memory.
    pub(super) fn assert_empty(&self, mm: &TestMm<'_>) {
        let usage = run(check(Durable::of(self.disk))).unwrap_or_else(|damage| panic!("{damage}"));
        assert_eq!((usage.files, usage.directories), (0, 1));
        let files = mm.mapping_ids().count();
        assert_eq!(files, 0, "mappings of files are left");
    }
}

/// One of the requests under way is done, and whoever waits is told.
fn step((disk, has_failed): (&Disk, &Cell<bool>), mm: &TestMm<'_>, choice: usize) -> bool {
    let mut has_worked = disk.step(&mm.frames, choice);
    while let Some(((answer, _), result)) = disk.completed() {
        has_worked = true;
        has_failed.set(has_failed.get() || result.is_err());
        let waker = {
            let mut answer = answer.lock();
            answer.0 = Some(result);
            answer.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    has_worked
}

async fn write_back(fs: &PageFs<'_>, sim: &Sim<'_>) {
    loop {
        sim.clock.sleep(WRITE_BACK.0).await;
        let age = Age {
            now: sim.clock.now(),
            expire: WRITE_BACK.1,
            nr_pages: 64,
        };
        match sim.failing(fs.mounted.write_back_old(age)).await {
            Ok(round) => count(&sim.seen.commits, u32::from(round.committed)),
            Err(FsError::Io) => sim.io_error(fs.has_failed.get()),
            Err(error) => panic!("{error}"),
        }
    }
}
