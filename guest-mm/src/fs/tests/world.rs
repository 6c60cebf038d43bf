//! A machine with a simulated disk: tasks are polled, and the disk does its work, in an order that a seed decides.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::disk::{BlockDevice, BlockNr, IoError, Refused, Request, SimulatedDisk};
use crate::fs::pagefs::{Block, Blocks, Volume, run};
use crate::fs::{Heap, Keep, Machine};
use crate::host::{HostFrames, HostMmu};
use crate::mempool::ThisCpu;
use crate::pfn::PAGE_BYTES;
use crate::tests::machine::TestMm;

/// What became of a request.
type Answer = Arc<SpinLock<Option<Result<(), IoError>>>>;
pub(super) type Disk = SimulatedDisk<(Answer, Keep)>;

/// See the module.
#[derive(Clone, Copy)]
pub(super) struct World<'a, 'm> {
    pub(super) mm: &'a TestMm<'m>,
    pub(super) cpu: &'a Cpu,
    pub(super) disk: &'a Disk,
}

impl ThisCpu for World<'_, '_> {
    fn this_cpu(&self) -> &Cpu {
        self.cpu
    }
}

impl<'m> Machine<'m> for World<'_, 'm> {
    type Frames = HostFrames;
    type Mmu = HostMmu;
    type Names = Heap;
    type Inodes = Heap;

    fn mm(&self) -> &TestMm<'m> {
        self.mm
    }

    fn nr_blocks(&self) -> u64 {
        BlockDevice::nr_blocks(self.disk)
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
        poll_fn(|_| answer.lock().map_or(Poll::Pending, Poll::Ready)).await
    }
}

/// Lets others have their turn.
pub(super) async fn pause() {
    let paused = Cell::new(false);
    poll_fn(|_| match paused.replace(true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Numbers that follow from a seed (xorshift64).
pub(super) struct Numbers(Cell<u64>);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))
    }

    /// The same as an index.
    pub(super) fn index(&self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        let mut number = self.0.get();
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        self.0.set(number);
        number % limit
    }
}

/// How the running of tasks ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Done,
    /// The power went.
    Cut,
}

impl World<'_, '_> {
    /// Polls `main` to its end, and `others` beside it, for at most so many steps.
    pub(super) fn drive<'f>(
        &self,
        numbers: &Numbers,
        steps: u64,
        main: impl Future<Output = ()> + 'f,
        others: Vec<Pin<Box<dyn Future<Output = ()> + 'f>>>,
    ) -> End {
        let done = Cell::new(false);
        let main = async {
            main.await;
            done.set(true);
        };
        let mut tasks: Vec<Option<Pin<Box<dyn Future<Output = ()> + '_>>>> = std::vec![Some(Box::pin(main))];
        tasks.extend(others.into_iter().map(Some));
        for _ in 0..steps {
            if done.get() {
                return End::Done;
            }
            let choice = numbers.index(tasks.len() + 2);
            let Some(task) = tasks.get_mut(choice) else {
                self.disk.step(&self.mm.frames, numbers.index(64));
                while let Some(((answer, _), result)) = self.disk.completed() {
                    *answer.lock() = Some(result);
                }
                continue;
            };
            if let Some(work) = task
                && work
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_ready()
            {
                *task = None;
            }
        }
        assert!(steps < u64::MAX);
        End::Cut
    }
}

/// What is durably on a disk, as blocks that nobody waits for: a file system is made there, and looked at.
pub(crate) struct Durable<'a, T> {
    disk: &'a SimulatedDisk<T>,
    written: RefCell<Vec<(u32, Block)>>,
}

impl<'a, T> Durable<'a, T> {
    pub(crate) fn of(disk: &'a SimulatedDisk<T>) -> Self {
        Self {
            disk,
            written: RefCell::default(),
        }
    }

    /// An empty file system.
    pub(crate) fn format(disk: &'a SimulatedDisk<T>) {
        run(Volume::format(Self::of(disk))).unwrap();
    }
}

impl<T> Blocks for Durable<'_, T> {
    fn nr_blocks(&self) -> u64 {
        BlockDevice::nr_blocks(self.disk)
    }

    async fn read(&self, block: u32) -> Result<Box<Block>, IoError> {
        let mut contents = Box::new([0; PAGE_BYTES]);
        contents.copy_from_slice(&self.disk.contents(BlockNr(block.into())));
        Ok(contents)
    }

    async fn write(&self, block: u32, contents: &Block) -> Result<(), IoError> {
        self.written.borrow_mut().push((block, *contents));
        self.disk.preset(BlockNr(block.into()), contents);
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }
}
