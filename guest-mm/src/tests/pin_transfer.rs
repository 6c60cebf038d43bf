//! Pages that are pinned for transfers while their block is emptied: it waits for those that have begun, and the others find their pages elsewhere.

use core::pin::pin;
use core::task::{Context, Poll};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::task::Wake;
use std::thread;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};

use crate::blocks::{BlockIndex, IsolatedBlock};
use crate::migrate::{BatchEnd, BusyPages, RefusalReason};
use crate::mm::{CopyError, PageWait};
use crate::pagetable::translate;
use crate::phys::Pin;
use crate::tests::machine::{TestMm, anonymous, load, machine, machine_of, remove, store};
use crate::tests::phys_model::{descriptors, small_memory_for};
use crate::{Access, Gfp, HugeAdvice, Order, Pfn, SpaceId, ZoneKind};

const HOLDER: &str = "direct I/O";
const PAGES: u64 = 16;

/// A task that counts how often it was woken.
#[derive(Default)]
struct Task(AtomicU32);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

struct Program {
    id: SpaceId,
    va: u64,
}

impl Program {
    fn new(mm: &TestMm<'_>, cpu: &Cpu, pages: u64, advice: HugeAdvice) -> Self {
        let id = mm.create_space(cpu, &[]).unwrap();
        let va = mm.mmap(id, &anonymous(pages * 4096, advice)).unwrap();
        for page in 0..pages {
            store(mm, cpu, id, va + page * 4096, page + 1).unwrap();
        }
        Self { id, va }
    }

    fn at(&self, page: u64) -> u64 {
        self.va + page * 4096
    }

    fn pfn(&self, mm: &TestMm<'_>, page: u64) -> Pfn {
        let root = mm.space(self.id).unwrap().root();
        let found = translate(&mm.frames, root, self.at(page), Access::Read).unwrap();
        Pfn::containing(found.gpa).unwrap()
    }

    fn block(&self, mm: &TestMm<'_>) -> BlockIndex {
        mm.phys.block_of(self.pfn(mm, 0)).expect("programs are on blocks")
    }

    fn pin(&self, mm: &TestMm<'_>, cpu: &Cpu, pages: core::ops::Range<u64>) -> Result<Vec<Pin>, CopyError> {
        let addresses: Vec<u64> = pages.map(|page| self.at(page)).collect();
        mm.pin_user_pages(cpu, self.id, &addresses, HOLDER)
    }

    fn check(&self, mm: &TestMm<'_>, cpu: &Cpu, pages: u64) {
        for page in 0..pages {
            assert_eq!(load(mm, cpu, self.id, self.at(page)), Ok(page + 1));
        }
    }
}

fn unpin(mm: &TestMm<'_>, cpu: &Cpu, pins: Vec<Pin>) {
    pins.into_iter().for_each(|pin| mm.phys.unpin(cpu, pin));
}

fn wait_of(pinned: Result<Vec<Pin>, CopyError>) -> PageWait {
    match pinned {
        Err(CopyError::Locked { page, .. }) => page,
        other => panic!("{other:?}"),
    }
}

/// Another pass over what is left, which waits for busy pages.
fn again(mm: &TestMm<'_>, block: IsolatedBlock) -> IsolatedBlock {
    let mut block = mm.phys.offline(block).unwrap_err().block;
    block.rewind_with(BusyPages::Await);
    block
}

/// All that is pinned on the machine.
fn nr_pins(mm: &TestMm<'_>) -> usize {
    mm.phys.pins.lock().held.len()
}

#[test]
fn where_one_page_of_a_transfer_cannot_be_pinned_those_before_it_are_not_either() {
    machine!(mm, cpu, 512, 3);
    let program = Program::new(&mm, &cpu, PAGES, HugeAdvice::NoHuge);
    let pfn = program.pfn(&mm, 5);
    let page = mm.phys.page(pfn).unwrap();
    assert!(page.try_lock());
    assert_eq!(wait_of(program.pin(&mm, &cpu, 0..8)), PageWait::lock(pfn));
    mm.unlock_page(pfn, page);
    let beyond = program.pin(&mm, &cpu, PAGES - 2..PAGES + 1);
    assert!(matches!(beyond, Err(CopyError::Fault { .. })), "{beyond:?}");
    assert_eq!(nr_pins(&mm), 0);
    mm.validate().unwrap();
    // Some are elsewhere by now, and the others are on a block that is about to leave.
    let mut token = mm.phys.isolate(program.block(&mm)).unwrap();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, 8).moved_small, 8);
    let is_there = |page: &u64| mm.phys.block_of(program.pfn(&mm, *page)) == Some(token.block());
    let (leaving, gone): (Vec<u64>, Vec<u64>) = (0..PAGES).partition(is_there);
    let addresses: Vec<u64> = gone
        .iter()
        .chain(&leaving)
        .map(|&page| program.at(page))
        .collect();
    let pins = mm.pin_user_pages(&cpu, program.id, &addresses, HOLDER).unwrap();
    assert_eq!((gone.len(), pins.len(), nr_pins(&mm)), (8, 16, 16), "each once");
    mm.validate().unwrap();
    unpin(&mm, &cpu, pins);
    assert_eq!(mm.phys.used_pages(&token), 0, "nobody has one of them");
    remove(&mut mm, token);
    program.check(&mm, &cpu, PAGES);
    mm.validate().unwrap();
}

#[test]
fn a_block_waits_for_the_end_of_a_transfer_and_no_other_begins_on_its_pages() {
    machine!(mm, cpu, 512, 2);
    let program = Program::new(&mm, &cpu, PAGES, HugeAdvice::NoHuge);
    let (block, pfn) = (program.block(&mm), program.pfn(&mm, 3));
    let first = program.pin(&mm, &cpu, 3..4).unwrap();
    assert_eq!(
        mm.phys.rank_blocks().last().unwrap().block,
        block,
        "it can go, as any other"
    );
    let mut token = mm.phys.isolate(block).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    let [refusal] = report.refused[..] else {
        panic!("{report:?}")
    };
    assert_eq!(
        (refusal.pfn, refusal.reason),
        (pfn, RefusalReason::UnderIo { holder: HOLDER })
    );
    assert_eq!((report.end, report.moved_small), (BatchEnd::PassDone, 15));
    let mut token = again(&mm, token);
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.refused), (BatchEnd::Busy(pfn), Vec::new()));
    assert!(!mm.is_idle(pfn));
    let wait = wait_of(program.pin(&mm, &cpu, 2..5));
    {
        let (mut idle, mut turn) = (pin!(mm.until_idle(pfn)), pin!(mm.until_unlocked(wait)));
        let task = Arc::new(Task::default());
        let waker = task.clone().into();
        let mut context = Context::from_waker(&waker);
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(turn.as_mut().poll(&mut context), Poll::Pending);
        mm.validate().unwrap();
        unpin(&mm, &cpu, first);
        assert_eq!(task.0.load(SeqCst), 2, "both are called");
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(turn.as_mut().poll(&mut context), Poll::Ready(()));
    }
    // Who has waited for a turn does not keep the block: the page goes with him.
    let second = program.pin(&mm, &cpu, 2..5).unwrap();
    assert!(
        second
            .iter()
            .all(|pin| mm.phys.block_of(pin.pfn()) != Some(block))
    );
    assert_eq!(mm.phys.stats().transfer_moved, 1, "the others were elsewhere");
    mm.validate().unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.refused), (BatchEnd::PassDone, Vec::new()));
    assert_eq!(token.passes(), 2);
    remove(&mut mm, token);
    program.check(&mm, &cpu, PAGES);
    unpin(&mm, &cpu, second);
    mm.validate().unwrap();
}

#[test]
fn transfers_that_follow_one_another_without_pause_keep_no_block() {
    machine!(mm, cpu, 512, 2);
    let program = Program::new(&mm, &cpu, PAGES, HugeAdvice::NoHuge);
    let block = program.block(&mm);
    let mut at_work = program.pin(&mm, &cpu, 0..PAGES).unwrap();
    let mut token = mm.phys.isolate(block).unwrap();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 0);
    let mut token = again(&mm, token);
    let mut ended = 0;
    loop {
        let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
        assert_eq!(report.refused, []);
        if report.end == BatchEnd::PassDone {
            break;
        }
        // The next one begins before the block has its turn, and as soon as it can.
        if let Ok(next) = program.pin(&mm, &cpu, 0..PAGES) {
            unpin(&mm, &cpu, core::mem::replace(&mut at_work, next));
        } else {
            unpin(&mm, &cpu, core::mem::take(&mut at_work));
            at_work = program.pin(&mm, &cpu, 0..PAGES).unwrap();
        }
        ended += 1;
        assert!(ended < 5, "the block waits for one after the other");
    }
    assert_eq!(token.passes(), 2);
    remove(&mut mm, token);
    unpin(&mm, &cpu, at_work);
    program.check(&mm, &cpu, PAGES);
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_of_a_leaving_block_moves_whole_and_all_of_a_transfer_in_it_are_pinned() {
    machine!(mm, cpu, 512, 3);
    let program = Program::new(&mm, &cpu, 512, HugeAdvice::Huge);
    assert_eq!(mm.phys.stats().nr_anon_transparent_hugepages, 1);
    let block = program.block(&mm);
    let token = mm.phys.isolate(block).unwrap();
    let pins = program.pin(&mm, &cpu, 5..9).unwrap();
    let stats = mm.phys.stats();
    assert_eq!((stats.transfer_moved, stats.thp_migration_success), (512, 1));
    for (page, pin) in (5..).zip(&pins) {
        assert_eq!(pin.pfn(), program.pfn(&mm, page));
        assert_ne!(mm.phys.block_of(pin.pfn()), Some(block));
    }
    remove(&mut mm, token);
    program.check(&mm, &cpu, 512);
    unpin(&mm, &cpu, pins);
    mm.validate().unwrap();
}

#[test]
fn without_memory_a_transfer_goes_on_where_its_pages_are_and_later_ones_wait_until_the_block_is_put_back() {
    machine!(mm, cpu, 512, 2);
    let program = Program::new(&mm, &cpu, 512, HugeAdvice::Huge);
    assert_eq!(mm.phys.stats().nr_anon_transparent_hugepages, 1);
    let block = program.block(&mm);
    let mut taken = Vec::new();
    while let Ok(pfn) = mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO) {
        taken.push(pfn);
    }
    let token = mm.phys.isolate(block).unwrap();
    // All of one page, which they must not wait for.
    let pins = program.pin(&mm, &cpu, 5..9).unwrap();
    assert!(pins.iter().all(|pin| mm.phys.block_of(pin.pfn()) == Some(block)));
    assert_eq!(mm.phys.stats().transfer_moved, 0);
    mm.validate().unwrap();
    let wait = wait_of(program.pin(&mm, &cpu, 1..2));
    {
        let mut turn = pin!(mm.until_unlocked(wait));
        let task = Arc::new(Task::default());
        let waker = task.clone().into();
        let mut context = Context::from_waker(&waker);
        assert_eq!(turn.as_mut().poll(&mut context), Poll::Pending);
        mm.phys.undo(token);
        assert_eq!(task.0.load(SeqCst), 1);
        assert_eq!(turn.as_mut().poll(&mut context), Poll::Ready(()));
    }
    let more = program.pin(&mm, &cpu, 1..2).unwrap();
    mm.validate().unwrap();
    unpin(&mm, &cpu, more);
    unpin(&mm, &cpu, pins);
    taken
        .into_iter()
        .for_each(|pfn| mm.phys.free_pages(&cpu, pfn).unwrap());
    program.check(&mm, &cpu, 512);
    mm.validate().unwrap();
}

#[test]
fn what_somebody_keeps_for_long_is_not_waited_for_by_others_nor_by_its_block() {
    machine!(mm, cpu, 512, 2);
    let program = Program::new(&mm, &cpu, PAGES, HugeAdvice::NoHuge);
    let pfn = program.pfn(&mm, 0);
    let transfer = program.pin(&mm, &cpu, 0..1).unwrap();
    let mut token = mm.phys.isolate(program.block(&mm)).unwrap();
    let kept = mm.phys.pin(pfn, "a ring").unwrap();
    let another = program.pin(&mm, &cpu, 0..1).unwrap();
    mm.validate().unwrap();
    unpin(&mm, &cpu, transfer);
    token.rewind_with(BusyPages::Await);
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(report.end, BatchEnd::PassDone);
    assert_eq!(
        report.refused[0].reason,
        RefusalReason::Pinned { holder: "a ring" }
    );
    mm.phys.undo(token);
    let block = program.block(&mm);
    assert_eq!(mm.phys.pin_on(block), Some((pfn, "a ring")));
    mm.phys.unpin(&cpu, kept);
    assert_eq!(mm.phys.pin_on(block), None);
    mm.validate().unwrap();
    unpin(&mm, &cpu, another);
    mm.validate().unwrap();
}

/// One transfer after the other on the same pages, which stay where they are meanwhile.
fn transfer(mm: &TestMm<'_>, cpu: &Cpu, program: &Program, is_over: &AtomicBool) {
    let mut turn = u64::from(cpu.id().number());
    while !is_over.load(SeqCst) {
        turn += 1;
        let first = turn % (PAGES - 4);
        match program.pin(mm, cpu, first..first + 4) {
            Ok(pins) => {
                thread::yield_now();
                for (page, pin) in (first..).zip(&pins) {
                    assert_eq!(pin.pfn(), program.pfn(mm, page), "page {page} was taken away");
                }
                unpin(mm, cpu, pins);
            }
            Err(CopyError::Locked { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Moves everything off a block, which is looked at twice for that, and brings it back.
fn empty(mm: &TestMm<'_>, cpu: &Cpu, mut token: IsolatedBlock) {
    let block = token.block();
    loop {
        match mm.migrate_batch(cpu, &mut token, u32::MAX).end {
            BatchEnd::Busy(_) => thread::yield_now(),
            BatchEnd::PassDone => match mm.phys.offline(token) {
                Ok(()) => break,
                Err(not_empty) => {
                    token = not_empty.block;
                    token.rewind_with(BusyPages::Await);
                }
            },
            end => panic!("{end:?}"),
        }
    }
    mm.phys.online(block, ZoneKind::Movable).unwrap();
}

/// Others stop when a thread panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn every_block_leaves_within_two_passes_while_cpus_begin_one_transfer_after_the_other() {
    let pages = descriptors(512 * 2);
    let phys = small_memory_for(3, &pages, 512, 2);
    let mm = machine_of(&phys);
    let cpus = CpuSet::new(3).unwrap();
    let [one, two, three] = [0, 1, 2].map(|number| cpus.claim(CpuId::new(number).unwrap()).unwrap());
    let program = Program::new(&mm, &three, PAGES, HugeAdvice::NoHuge);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (mm, program, is_over) = (&mm, &program, &is_over);
        let over = Over(is_over);
        for cpu in [one, two] {
            scope.spawn(move || {
                let _over = Over(is_over);
                transfer(mm, &cpu, program, is_over);
            });
        }
        // Until they have met often enough.
        let has_met = || {
            let stats = mm.phys.stats();
            stats.transfer_moved >= 20 && stats.blocks_unplug_pass2 >= 20
        };
        while !has_met() && !is_over.load(SeqCst) {
            let used = |block| {
                mm.phys
                    .block_usage(block)
                    .is_some_and(|usage| usage.used_pages > 0)
            };
            if let Some(block) = (0..2).map(BlockIndex).find(|block| used(*block)) {
                empty(mm, &three, mm.phys.isolate(block).unwrap());
            }
            thread::yield_now();
        }
        drop(over);
    });
    let stats = mm.phys.stats();
    assert_eq!(stats.blocks_unplug_pass_more, 0, "{stats:?}");
    program.check(&mm, &three, PAGES);
    mm.validate().unwrap();
}
