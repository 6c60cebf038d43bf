//! The devices against the guest's drivers, without KVM: both sides are the code that runs in a VM, only the
//! processor between them is missing. What the guest's kernel does with memory is played by a simple worker.

#![expect(
    clippy::unwrap_used,
    reason = "test code: what fails to unwrap fails its test"
)]

mod bus;
mod console;
mod disk;
mod memory;
mod negotiation;
mod requests;
mod resize;
mod task;
mod unplugged;
