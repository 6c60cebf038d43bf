//! Physical memory with CPUs that really run at once, while blocks leave and come back: who has a frame is noted beside it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::thread;
use std::vec::Vec;

use guest_sync::Cpu;

use super::many_cpus::{NR_BLOCKS, machine, pages};
use crate::blocks::BlockIndex;
use crate::tests::phys_model::{order, plug};
use crate::{Gfp, Order, Pfn, PhysicalMemory, ZoneKind};

/// A small generator of random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// Whom each frame belongs to: 0 nobody.
struct Owners(Vec<AtomicU8>);

impl Owners {
    fn take(&self, pfn: Pfn, order: Order, cpu: u8) {
        for frame in 0..order.nr_pages() {
            let before = self.0[(pfn + frame).number() as usize].swap(cpu + 1, SeqCst);
            assert_eq!(before, 0, "{pfn} is CPU {}'s", before - 1);
        }
    }

    fn give(&self, pfn: Pfn, order: Order, cpu: u8) {
        for frame in 0..order.nr_pages() {
            let before = self.0[(pfn + frame).number() as usize].swap(0, SeqCst);
            assert_eq!(before, cpu + 1, "{pfn} was taken by somebody else meanwhile");
        }
    }
}

/// Takes and frees at random for so many rounds, and gives everything back.
fn churn(memory: &PhysicalMemory<'_>, cpu: &Cpu, owners: &Owners, rounds: u32) {
    let id = cpu.id().number();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 + u64::from(id));
    let mut held: Vec<(Pfn, Order)> = Vec::new();
    let gfps = [Gfp::USER, Gfp::USER, Gfp::KERNEL, Gfp::SPARE, Gfp::DMA32];
    for _ in 0..rounds {
        let size = [0, 0, 0, 0, 0, 0, 1, 3, 9][random.below(9)];
        let gfp = gfps[random.below(gfps.len())];
        for _ in 0..1 + random.below(80) {
            if let Ok(pfn) = memory.alloc_pages(cpu, gfp, order(size)) {
                owners.take(pfn, order(size), id);
                held.push((pfn, order(size)));
            }
        }
        for _ in 0..random.below(100).min(held.len()) {
            let (pfn, order) = held.swap_remove(random.below(held.len()));
            owners.give(pfn, order, id);
            memory.free_pages(cpu, pfn).unwrap();
        }
    }
    for (pfn, order) in held {
        owners.give(pfn, order, id);
        memory.free_pages(cpu, pfn).unwrap();
    }
}

/// Isolates a block and waits a while for its frames to come back. If they do, it leaves and comes again.
fn remove_and_add(
    memory: &PhysicalMemory<'_>,
    owners: &Owners,
    block: BlockIndex,
    random: &mut Random,
) -> bool {
    let Ok(mut token) = memory.isolate(block) else {
        return false;
    };
    for _ in 0..random.below(2000) {
        match memory.offline(token) {
            Ok(()) => {
                let range = memory.hotplug_region().block_range(block).unwrap();
                let owned = |pfn: Pfn| owners.0[pfn.number() as usize].load(SeqCst) != 0;
                assert!(
                    !range.iter().any(owned),
                    "a frame of a block that has gone is in use"
                );
                memory.unplugged(block).unwrap();
                plug(memory, block, ZoneKind::Movable);
                return true;
            }
            Err(refused) => token = refused.block,
        }
        thread::yield_now();
    }
    memory.undo(token);
    false
}

#[test]
fn cpus_that_run_at_once_never_share_a_frame_while_blocks_come_and_go() {
    let pages = pages(1024);
    let (memory, cpus) = machine(&pages, 1024);
    for block in 0..NR_BLOCKS {
        plug(&memory, BlockIndex(block), ZoneKind::Movable);
    }
    let owners = Owners(pages.iter().map(|_| AtomicU8::new(0)).collect());
    let over = AtomicBool::new(false);
    let mut removed = 0;
    thread::scope(|scope| {
        let (memory, owners, over) = (&memory, &owners, &over);
        let workers: Vec<_> = cpus
            .into_iter()
            .map(|cpu| scope.spawn(move || churn(memory, &cpu, owners, 600)))
            .collect();
        let remover = scope.spawn(move || {
            let mut removed = 0;
            let mut random = Random(77);
            while !over.load(SeqCst) {
                let block = BlockIndex(u32::try_from(random.below(NR_BLOCKS as usize)).unwrap());
                removed += u32::from(remove_and_add(memory, owners, block, &mut random));
            }
            removed
        });
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        over.store(true, SeqCst);
        removed = remover.join().unwrap();
    });
    memory.validate().unwrap();
    let stats = memory.memory_stats();
    assert_eq!(
        stats.free_pages + stats.isolated_pages,
        stats.total_pages,
        "{removed} removed"
    );
    assert!(removed > 0, "no block could be removed under load");
}
