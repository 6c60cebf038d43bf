//! The machine that the tests run on, and what programs do on it.
//!
//! Programs reach their memory through a CPU with a translation cache that forgets only what it is told to, over
//! frames that panic when they are touched after they were unplugged.

use guest_sync::Cpu;

use crate::blocks::BlockIndex;
use crate::host::{HostFrames, HostMmu};
use crate::migrate::MigrateReport;
use crate::mm::{FaultError, FaultOutcome};
use crate::tests::phys_model::{plug, range};
use crate::{
    Access, Backing, HugeAdvice, IsolatedBlock, MapRequest, Mm, PhysicalMemory, Place, Prot, SpaceId,
    ZoneKind,
};

pub(crate) type TestMm<'m> = Mm<'m, HostFrames, HostMmu>;

pub(crate) const RW: Prot = Prot::READ.with(Prot::WRITE);
pub(crate) const MIB: u64 = 1 << 20;

/// `machine!(mm, cpu, block_nr_pages, nr_blocks)`: a machine with one CPU, boot memory of 8 MiB and blocks plugged,
/// and frames that exist exactly where memory is plugged.
macro_rules! machine {
    ($mm:ident, $cpu:ident, $block_nr_pages:expr, $nr_blocks:expr) => {
        let (block_nr_pages, nr_blocks) = ($block_nr_pages, $nr_blocks);
        let pages = $crate::tests::phys_model::descriptors(block_nr_pages * nr_blocks);
        let memory = $crate::tests::phys_model::small_memory(&pages, block_nr_pages, nr_blocks);
        let $cpu = $crate::tests::phys_model::one_cpu();
        #[allow(unused_mut, reason = "some tests only look")]
        let mut $mm = $crate::tests::machine::machine_of(&memory);
    };
}
pub(crate) use machine;

/// The machine around a memory whose blocks are unplugged: all of them are plugged.
pub(crate) fn machine_of<'m>(memory: &'m PhysicalMemory<'m>) -> TestMm<'m> {
    let mut frames = HostFrames::new();
    frames.plug(range(0, 2048));
    let mut mm = Mm::new(memory, frames, HostMmu::new());
    for block in 0..memory.hotplug_region().nr_blocks() {
        plug_block(&mut mm, block);
    }
    mm
}

pub(crate) fn plug_block(mm: &mut TestMm<'_>, block: u32) {
    let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
    mm.frames.plug(range);
    plug(mm.phys, BlockIndex(block), ZoneKind::Movable);
}

pub(crate) fn anonymous(len: u64, advice: HugeAdvice) -> MapRequest {
    MapRequest {
        len,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::Anonymous(advice),
    }
}

/// A store by a program, with the faults it takes.
pub(crate) fn store(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, va: u64, value: u64) -> Result<(), FaultError> {
    while mm.cpu_store(id, va, value).is_err() {
        let outcome = mm.fault(cpu, id, va, Access::Write)?;
        assert!(!matches!(outcome, FaultOutcome::Locked(_)), "{outcome:?}");
    }
    Ok(())
}

pub(crate) fn load(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, va: u64) -> Result<u64, FaultError> {
    loop {
        if let Ok(value) = mm.cpu_load(id, va) {
            return Ok(value);
        }
        let outcome = mm.fault(cpu, id, va, Access::Read)?;
        assert!(!matches!(outcome, FaultOutcome::Locked(_)), "{outcome:?}");
    }
}

/// Isolates the block whose emptying costs most.
pub(crate) fn isolate_fullest(mm: &TestMm<'_>) -> IsolatedBlock {
    let fullest = mm.phys.rank_blocks().last().unwrap().block;
    mm.phys.isolate(fullest).unwrap()
}

/// Isolates a block and moves everything off it.
pub(crate) fn empty_block(mm: &TestMm<'_>, cpu: &Cpu, block: u32) -> (IsolatedBlock, MigrateReport) {
    let mut token = mm.phys.isolate(BlockIndex(block)).unwrap();
    let report = mm.migrate_batch(cpu, &mut token, u32::MAX);
    (token, report)
}

/// Hot remove to the end: the frames are gone afterwards.
pub(crate) fn remove(mm: &mut TestMm<'_>, token: IsolatedBlock) {
    let block = token.block();
    mm.phys.offline(token).unwrap();
    mm.phys.unplugged(block).unwrap();
    let range = mm.phys.hotplug_region().block_range(block).unwrap();
    mm.frames.unplug(range);
}
