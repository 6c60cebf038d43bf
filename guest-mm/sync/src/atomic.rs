//! The atomics that everything here and in `guest-mm` uses: the processor's, or those of loom or shuttle in a model.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(shuttle)]
pub use shuttle::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// Lets `hook` be called, again and again, by every CPU that waits for another one ([`relax`]): to answer what others
/// may be waiting for meanwhile, which would never end otherwise. It must not wait itself.
#[cfg(not(any(loom, shuttle)))]
pub fn set_while_waiting(hook: fn()) {
    WHILE_WAITING.store(hook as *mut (), Ordering::Release);
}

/// A `fn()`, or null.
#[cfg(not(any(loom, shuttle)))]
static WHILE_WAITING: core::sync::atomic::AtomicPtr<()> =
    core::sync::atomic::AtomicPtr::new(core::ptr::null_mut());

/// Tells the processor (or the model) that this is a loop that waits for another CPU.
#[inline]
pub fn relax() {
    #[cfg(not(any(loom, shuttle)))]
    answer_others();
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

#[inline]
#[cfg(not(any(loom, shuttle)))]
#[expect(unsafe_code, reason = "calls the function that was stored as a pointer")]
fn answer_others() {
    let hook = WHILE_WAITING.load(Ordering::Acquire);
    if !hook.is_null() {
        // SAFETY: only a `fn()` is ever stored there.
        let hook = unsafe { core::mem::transmute::<*mut (), fn()>(hook) };
        hook();
    }
    core::hint::spin_loop();
}
