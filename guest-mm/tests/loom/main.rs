//! The memory manager as it is, with several CPUs, in every interleaving that differs in what they share and in every
//! order of memory that the language permits.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-mm --release --test loom --target-dir target/loom` runs the models, with
//! at most two preemptions each; `LOOM_MAX_PREEMPTIONS=3` (or more) explores further. Without `--cfg loom` there is
//! nothing here.

#![cfg(loom)]
#![expect(
    unsafe_code,
    reason = "loom has no scoped threads: what they share is held by a pointer"
)]

mod frames;
mod futex;
mod slab;

use guest_sync::{Cpu, CpuId, CpuSet};
use loom::sync::Arc;
use loom::thread;

/// Runs the model in every interleaving.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 1_000_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(model);
}

/// The CPUs of a machine.
fn cpus<const N: usize>() -> [Cpu; N] {
    let set = CpuSet::new(u8::try_from(N).expect("a few")).expect("one at least");
    std::array::from_fn(|index| {
        let id = CpuId::new(u8::try_from(index).expect("a few")).expect("below 64");
        set.claim(id).expect("each once")
    })
}

/// A thread of the model: another CPU.
fn spawn<W: 'static, R: 'static>(
    world: &Arc<W>,
    work: impl FnOnce(&W) -> R + 'static,
) -> thread::JoinHandle<R> {
    let world = Arc::clone(world);
    thread::spawn(move || work(&world))
}
