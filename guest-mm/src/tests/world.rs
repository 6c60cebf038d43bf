//! Address spaces, demand paging and migration against a plain model: what each program wrote where, while blocks
//! come and go.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::{BlockIndex, BlockState};
use crate::migrate::{BatchEnd, RefusalReason};
use crate::mm::FaultError;
use crate::tests::machine::{RW, TestMm, anonymous, load, machine_of, plug_block, store};
use crate::tests::phys_model::{descriptors, one_cpu, small_memory};
use crate::{Access, HugeAdvice, IsolatedBlock, Pfn, PhysicalMemory, Prot, SpaceId};

#[derive(Clone, Debug)]
enum Op {
    Map {
        space: usize,
        pages: u64,
        advice: HugeAdvice,
    },
    Unmap {
        space: usize,
        area: usize,
        from: u64,
        pages: u64,
    },
    Protect {
        space: usize,
        area: usize,
        from: u64,
        pages: u64,
        prot: Prot,
    },
    Store {
        space: usize,
        area: usize,
        page: u64,
    },
    Replace {
        space: usize,
    },
    Plug(u32),
    Isolate(u32),
    Migrate {
        block: u32,
        budget: u32,
    },
    BeginAndAbort {
        block: u32,
        budget: u32,
    },
    Undo(u32),
    Remove(u32),
    Pin {
        space: usize,
        area: usize,
        page: u64,
    },
    Unpin,
}

fn ops() -> impl Strategy<Value = Op> {
    let space = || 0usize..2;
    let area = || 0usize..64;
    let advice = prop::sample::select(vec![HugeAdvice::Huge, HugeAdvice::NoHuge]);
    let prot = prop::sample::select(vec![Prot::READ, RW, Prot::NONE]);
    prop_oneof![
        3 => (space(), prop_oneof![1u64..40, 400u64..1200], advice)
            .prop_map(|(space, pages, advice)| Op::Map { space, pages, advice }),
        2 => (space(), area(), 0u64..600, prop_oneof![1u64..20, 300u64..900])
            .prop_map(|(space, area, from, pages)| Op::Unmap { space, area, from, pages }),
        1 => (space(), area(), 0u64..600, 1u64..600, prot)
            .prop_map(|(space, area, from, pages, prot)| Op::Protect { space, area, from, pages, prot }),
        12 => (space(), area(), 0u64..1200).prop_map(|(space, area, page)| Op::Store { space, area, page }),
        1 => space().prop_map(|space| Op::Replace { space }),
        3 => (0u32..3).prop_map(Op::Plug),
        3 => (0u32..3).prop_map(Op::Isolate),
        4 => (0u32..3, 1u32..700).prop_map(|(block, budget)| Op::Migrate { block, budget }),
        1 => (0u32..3, 1u32..700).prop_map(|(block, budget)| Op::BeginAndAbort { block, budget }),
        1 => (0u32..3).prop_map(Op::Undo),
        3 => (0u32..3).prop_map(Op::Remove),
        1 => (space(), area(), 0u64..1200).prop_map(|(space, area, page)| Op::Pin { space, area, page }),
        1 => Just(Op::Unpin),
    ]
}

/// Programs as the model knows them: pages by number, with rights, and what was stored last.
#[derive(Default)]
struct Program {
    pages: BTreeMap<u64, Prot>,
    words: BTreeMap<u64, u64>,
}

/// Words of a page that programs store to: few, so that a page that was not zeroed shows.
const STAMPED_WORDS: u64 = 8;

struct World<'m> {
    mm: TestMm<'m>,
    cpu: Cpu,
    ids: [SpaceId; 2],
    programs: [Program; 2],
    isolated: BTreeMap<u32, IsolatedBlock>,
    pins: Vec<crate::phys::Pin>,
    stamp: u64,
}

impl<'m> World<'m> {
    fn new(memory: &'m PhysicalMemory<'m>) -> Self {
        let mm = machine_of(memory);
        let cpu = one_cpu();
        let ids = [(); 2].map(|()| mm.create_space(&cpu, &[]).unwrap());
        Self {
            mm,
            cpu,
            ids,
            programs: Default::default(),
            isolated: BTreeMap::new(),
            pins: Vec::new(),
            stamp: 0,
        }
    }

    /// An address of the program that some area has, `page` pages into it or its last.
    fn pick(&self, space: usize, area: usize, page: u64) -> Option<(u64, u64)> {
        let areas: Vec<_> = self.mm.space(self.ids[space]).unwrap().vmas().collect();
        let vma = areas.get(area % areas.len().max(1))?;
        Some((
            vma.range.start() + page.min(vma.range.nr_pages() - 1) * 4096,
            vma.range.end(),
        ))
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Map { space, pages, advice } => {
                let va = self
                    .mm
                    .mmap(self.ids[*space], &anonymous(pages * 4096, *advice))
                    .unwrap();
                for page in va / 4096..va / 4096 + pages {
                    assert_eq!(
                        self.programs[*space].pages.insert(page, RW),
                        None,
                        "{page:#x} was in use"
                    );
                }
            }
            Op::Unmap {
                space,
                area,
                from,
                pages,
            } => {
                self.unmap(*space, *area, *from, *pages);
            }
            Op::Protect {
                space,
                area,
                from,
                pages,
                prot,
            } => {
                let Some((va, _)) = self.pick(*space, *area, *from) else {
                    return;
                };
                if self
                    .mm
                    .mprotect(&self.cpu, self.ids[*space], va, pages * 4096, *prot)
                    .is_ok()
                {
                    for (_, rights) in self.programs[*space]
                        .pages
                        .range_mut(va / 4096..va / 4096 + pages)
                    {
                        *rights = *prot;
                    }
                }
            }
            Op::Store { space, area, page } => self.store(*space, *area, *page),
            Op::Replace { space } => {
                self.mm.destroy_space(&self.cpu, self.ids[*space]).unwrap();
                self.ids[*space] = self.mm.create_space(&self.cpu, &[]).unwrap();
                self.programs[*space] = Program::default();
            }
            Op::Pin { space, area, page } => self.pin(*space, *area, *page),
            Op::Unpin => {
                if let Some(pin) = self.pins.pop() {
                    self.mm.phys.unpin(&self.cpu, pin);
                }
            }
            _ => self.step_block(op),
        }
    }

    fn unmap(&mut self, space: usize, area: usize, from: u64, pages: u64) {
        let Some((va, _)) = self.pick(space, area, from) else {
            return;
        };
        if self
            .mm
            .munmap(&self.cpu, self.ids[space], va, pages * 4096)
            .is_ok()
        {
            let gone = va / 4096..va / 4096 + pages;
            self.programs[space].pages.retain(|page, _| !gone.contains(page));
            let id = self.ids[space];
            let mm = &self.mm;
            self.programs[space].words.retain(|&va, _| {
                let unmapped = gone.contains(&(va / 4096));
                assert!(
                    !unmapped || mm.cpu_load(id, va).is_err(),
                    "{va:#x} is still reached"
                );
                !unmapped
            });
        }
    }

    fn store(&mut self, space: usize, area: usize, page: u64) {
        let Some((va, _)) = self.pick(space, area, page) else {
            return;
        };
        self.stamp += 1;
        let va = va + self.stamp % STAMPED_WORDS * 8;
        match store(&self.mm, &self.cpu, self.ids[space], va, self.stamp) {
            Ok(()) => {
                assert!(self.programs[space].pages[&(va / 4096)].permits(Access::Write));
                self.programs[space].words.insert(va, self.stamp);
            }
            Err(FaultError::Protection { .. }) => {
                assert!(!self.programs[space].pages[&(va / 4096)].permits(Access::Write));
            }
            Err(error) => assert!(matches!(error, FaultError::OutOfMemory(_)), "{error}"),
        }
    }

    fn pin(&mut self, space: usize, area: usize, page: u64) {
        let Some((va, _)) = self.pick(space, area, page) else {
            return;
        };
        let root = self.mm.space(self.ids[space]).unwrap().root();
        if let Ok(found) = crate::pagetable::translate(&self.mm.frames, root, va, Access::Read) {
            let pfn = Pfn::containing(found.gpa).unwrap();
            self.pins.push(self.mm.phys.pin(pfn, "model").unwrap());
        }
    }

    fn step_block(&mut self, op: &Op) {
        match *op {
            Op::Plug(block) => {
                if self.mm.phys.hotplug_region().state(BlockIndex(block)) == Some(BlockState::Unplugged) {
                    plug_block(&mut self.mm, block);
                }
            }
            Op::Isolate(block) => {
                if let Ok(token) = self.mm.phys.isolate(BlockIndex(block)) {
                    self.isolated.insert(block, token);
                }
            }
            Op::Migrate { block, budget } => {
                let Some(token) = self.isolated.get_mut(&block) else {
                    return;
                };
                let report = self.mm.migrate_batch(&self.cpu, token, budget);
                for refusal in &report.refused {
                    assert_eq!(refusal.reason, RefusalReason::Pinned { holder: "model" });
                }
                if report.end == BatchEnd::PassDone {
                    token.rewind();
                }
            }
            Op::BeginAndAbort { block, budget } => {
                let Some(token) = self.isolated.get_mut(&block) else {
                    return;
                };
                let batch = self.mm.begin_migration(&self.cpu, token, budget);
                self.mm.validate().unwrap();
                self.mm.abort_migration(&self.cpu, batch);
                token.rewind();
            }
            Op::Undo(block) => {
                if let Some(token) = self.isolated.remove(&block) {
                    self.mm.phys.undo(token);
                }
            }
            Op::Remove(block) => {
                let Some(token) = self.isolated.remove(&block) else {
                    return;
                };
                match self.mm.phys.offline(token) {
                    Ok(_) => {
                        self.mm.phys.unplugged(BlockIndex(block)).unwrap();
                        let range = self
                            .mm
                            .phys
                            .hotplug_region()
                            .block_range(BlockIndex(block))
                            .unwrap();
                        self.mm.frames.unplug(range);
                    }
                    Err(refused) => {
                        self.isolated.insert(block, refused.block);
                    }
                }
            }
            _ => unreachable!("handled by step"),
        }
    }

    /// Everything that programs stored is still there, as the CPU sees it, and nothing else is.
    fn check_contents(&mut self) {
        for (space, program) in self.programs.iter().enumerate() {
            for (&va, &word) in &program.words {
                if !program.pages[&(va / 4096)].permits(Access::Read) {
                    continue;
                }
                assert_eq!(
                    load(&self.mm, &self.cpu, self.ids[space], va),
                    Ok(word),
                    "{va:#x}"
                );
                for beside in (0..STAMPED_WORDS).map(|word| va / 4096 * 4096 + word * 8) {
                    let expected = program.words.get(&beside).copied().unwrap_or(0);
                    assert_eq!(
                        load(&self.mm, &self.cpu, self.ids[space], beside),
                        Ok(expected),
                        "{beside:#x}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn programs_keep_what_they_wrote_while_blocks_come_and_go(
        shift in 0u32..2,
        ops in prop::collection::vec(ops(), 1..100),
    ) {
        let pages = descriptors(3 * (512 << shift));
        let memory = small_memory(&pages, 512 << shift, 3);
        let mut world = World::new(&memory);
        for op in &ops {
            world.step(op);
            world.mm.validate().unwrap();
        }
        world.check_contents();
        for pin in core::mem::take(&mut world.pins) {
            world.mm.phys.unpin(&world.cpu, pin);
        }
        for id in world.ids {
            world.mm.destroy_space(&world.cpu, id).unwrap();
        }
        world.mm.validate().unwrap();
        let stats = world.mm.phys.memory_stats();
        prop_assert_eq!(stats.free_pages + stats.isolated_pages, stats.total_pages);
    }
}

#[test]
fn every_sequence_of_four_steps_of_one_program_and_one_block_keeps_the_invariants() {
    let steps = [
        Op::Map {
            space: 0,
            pages: 512,
            advice: HugeAdvice::Huge,
        },
        Op::Store {
            space: 0,
            area: 0,
            page: 3,
        },
        Op::Unmap {
            space: 0,
            area: 0,
            from: 2,
            pages: 5,
        },
        Op::Isolate(2),
        Op::Migrate {
            block: 2,
            budget: 100,
        },
        Op::Undo(2),
        Op::Remove(2),
    ];
    for sequence in 0..steps.len().pow(4) {
        let pages = descriptors(3 * 512);
        let memory = small_memory(&pages, 512, 3);
        let mut world = World::new(&memory);
        world.step(&Op::Map {
            space: 0,
            pages: 20,
            advice: HugeAdvice::NoHuge,
        });
        world.step(&Op::Store {
            space: 0,
            area: 0,
            page: 0,
        });
        let mut digits = sequence;
        for _ in 0..4 {
            world.step(&steps[digits % steps.len()]);
            digits /= steps.len();
            world.mm.validate().unwrap();
        }
        world.check_contents();
    }
}
