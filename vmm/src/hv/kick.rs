//! Getting a thread out of `KVM_RUN`.
//!
//! A signal interrupts the ioctl, but a signal that arrives between a vCPU thread's last look at its flags and the
//! ioctl would be lost. So its handler also sets `kvm_run.immediate_exit` of the vCPU that its own thread runs, and
//! KVM then returns before it enters the guest (KVM API, 5 "The kvm_run structure").
#![expect(
    unsafe_code,
    reason = "a signal handler writes through a pointer into the kvm_run page"
)]

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::HvError;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null. Constant-initialised and without a destructor,
    /// so that a signal handler can read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that gets a vCPU thread out of the guest.
///
/// # Errors
/// Its handler cannot be installed.
pub fn kick_signal() -> Result<c_int, HvError> {
    static INSTALLED: OnceLock<Result<c_int, errno::Error>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let signal = SIGRTMIN();
        register_signal_handler(signal, on_kick).map(|()| signal)
    });
    installed.map_err(HvError::request("be interrupted by a signal"))
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is set only while a `Kickable` of this very thread lives, which owns the vCPU and with
        // it the page that the pointer points into.
        unsafe { flag.write_volatile(1) };
    }
}

/// A vCPU that the kick signal can stop. The raw pointer keeps it on the thread that made it.
#[derive(Debug)]
pub(super) struct Kickable {
    flag: *mut u8,
    fd: VcpuFd,
}

impl Kickable {
    /// Ties the vCPU to the calling thread, which must run no other one at the time.
    pub(super) fn new(mut fd: VcpuFd) -> Self {
        let flag = &raw mut fd.get_kvm_run().immediate_exit;
        let earlier = IMMEDIATE_EXIT.replace(flag);
        assert!(
            earlier.is_null(),
            "a thread runs one vCPU: its loop owns it from start to end"
        );
        Self { flag, fd }
    }

    /// Forgets earlier kicks. To be called *before* the flags are looked at for which a thread is kicked: a kick
    /// after that is then either seen in the flags or stops the next run at once.
    pub(super) fn rearm(&mut self) {
        // SAFETY: the vCPU is owned by `self`, so its page is still mapped.
        unsafe { self.flag.write_volatile(0) };
    }

    pub(super) fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
