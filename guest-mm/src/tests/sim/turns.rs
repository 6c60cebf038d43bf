//! Turns of tasks, one after the other, up to the end, when everything is given back.

use std::boxed::Box;

use super::backing::Fs;
use super::executor::Executor;
use super::machine::Begun;
use super::program::Program;
use super::{Sim, TURNS};

/// Pages that are written back when nobody has anything else to do.
const MOST_WRITTEN: u32 = 64;

/// Programs run until they have ended, and whoever else ends. After so many turns everybody is told to.
pub(super) fn play<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>, most: u32) {
    let mut turns = 0;
    while executor.has_tasks() || turns == 0 {
        if turns >= most {
            sim.end();
        }
        if !sim.is_ending.get() && sim.one_in(1000) {
            sim.kill_one();
        }
        step(sim, executor);
        turns += 1;
        assert!(turns < 30 * TURNS, "tasks do not end");
    }
}

/// One turn. As long as there is memory for one, there is a program that does not wait for another one to change a word; and always somebody who is
/// ready or sleeps for some time.
pub(super) fn step<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>) {
    if sim.nr_programs() == sim.words.nr_asleep() && !sim.is_ending.get() {
        // What the kernel has for its own goes first.
        let born = Program::new(sim).or_else(|| {
            sim.shrink_kernel_memory();
            Program::new(sim)
        });
        sim.newborn.borrow_mut().extend(born);
    }
    for program in sim.newborn.take() {
        executor.spawn(Box::pin(program.live(sim)));
    }
    // Who waits until less is dirty waits for the next write-back of what is old, at the latest.
    let writes_back = || sim.mm.write_back(sim.cpu, MOST_WRITTEN) > 0;
    assert!(
        turn(sim, executor) || sim.clock.skip() || writes_back(),
        "nobody is ready, and {} tasks wait, {} of them for memory",
        executor.nr_tasks(),
        sim.mm.phys.nr_waiting()
    );
}

/// A task has its turn, or the disks, or both; everything that must hold is looked at then. False if nobody had anything to do.
pub(super) fn turn<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>) -> bool {
    sim.clock.tick();
    let task = executor.turn(&mut sim.random.borrow_mut());
    let disk_worked = (task.is_none() || sim.one_in(2)) && (sim.disk_turn() | sim.files_turn());
    if let Some(task) = task {
        executor.poll(task);
        sim.note_lost();
    }
    if sim.is_validated.get()
        && let Err(error) = sim.mm.validate()
    {
        panic!("at {}: {error}", sim.clock.now());
    }
    sim.words.check();
    task.is_some() || disk_worked
}

/// Runs something to its end while no program is there, and until the daemons have nothing to do.
fn finish<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>, work: impl Future<Output = ()> + 'a) {
    executor.spawn(work);
    play(sim, executor, TURNS);
    while turn(sim, executor) {}
}

/// Files are written to the disk, compared, and removed; then everything is free that was at the beginning.
pub(super) fn give_all_back<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>, begun: Begun) {
    for pfn in begun.taken {
        sim.mm.phys.free_pages(sim.cpu, pfn).unwrap();
    }
    finish(sim, executor, async {
        let nobody = sim.begin_process(sim.mm.create_space(sim.cpu, &[]).unwrap());
        sim.end_files(&nobody).await;
        sim.words.remove(sim).await;
        sim.mm.set_nr_huge_pages(sim.cpu, 0);
        sim.mm.destroy_space(sim.cpu, nobody.space).unwrap();
        sim.end_process(&nobody);
        // What was busy when its last user went is left to reclaim.
        sim.reclaim.reclaim_pages(sim.cpu, u64::MAX).await;
    });
    let usage = sim.mm.swap_usage();
    assert_eq!(
        (usage.free, usage.cached),
        (usage.total, 0),
        "nobody is left who has swapped"
    );
    let kept_by_kernel = sim.kernel.end(sim);
    // The file system has a frame for when there is no other.
    let kept_by_fs = match &sim.fs {
        Fs::Map(_) => 0,
        Fs::Page(fs) => {
            fs.assert_empty(sim.mm);
            1
        }
    };
    let failed = sim.mm.phys.poisoned_frames().len() as u64;
    let free = sim.mm.phys.memory_stats().free_pages;
    assert_eq!(
        free + kept_by_fs + kept_by_kernel + failed,
        begun.all_free,
        "after all programs have ended"
    );
}
