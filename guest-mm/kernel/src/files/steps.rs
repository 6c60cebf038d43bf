//! Futures of the library, carried out step by step on whichever CPU the task is.

#![expect(
    unsafe_code,
    reason = "says of a future that it can move to another CPU where the compiler cannot see it"
)]

use crate::machine::cpu::this_cpu;
use crate::machine::quiet;
use alloc::boxed::Box;
use core::pin::Pin;
use core::task::{Context, Poll};

/// See [`steps`].
pub(crate) struct Steps<F>(Pin<Box<F>>);

// SAFETY: only `steps` makes one, of futures of `guest_mm::fs::mounted` and `guest_mm::mm` and of calls that consist of them (call.rs).
// What those keep over a wait is references to the kernel, a program, the memory manager, the file system and disks, which all CPUs share; numbers; and heap memory, which any CPU may free.
// They ask which CPU they are on at each step (`ThisCpu`), and a guard of a spin lock is never kept over a wait (clippy's
// `await-holding-invalid-types`). That the page cache's own are `Send` is tested in guest-mm (`what_waits_for_files_may_go_on_on_another_cpu`);
// of methods of traits that return futures the compiler can say it for no task (rust-lang/rust#110338).
unsafe impl<F> Send for Steps<F> {}

/// Carries out a future of the memory manager's or the file system's; nobody checks what they know during a step.
pub(crate) fn steps<F: Future>(future: F) -> Steps<F> {
    Steps(Box::pin(future))
}

impl<F: Future> Future for Steps<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _visit = quiet::visit(this_cpu());
        self.0.as_mut().poll(context)
    }
}
