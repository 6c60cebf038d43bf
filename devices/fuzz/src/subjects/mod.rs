//! The devices that are fuzzed: for each, its host's side, its requests, and what good service is.

mod balloon;
mod block;
mod console;
mod mem;
mod net;
mod ports;
mod rng;
mod vsock;

use std::fmt;
use std::rc::Rc;

use devices::mmio::{Effects, MmioTransport};
use devices::{DeviceError, VirtioDevice};

pub use balloon::BalloonSubject;
pub use block::BlockSubject;
pub use console::ConsoleSubject;
pub use mem::MemSubject;
pub use net::NetSubject;
pub use ports::PortsSubject;
pub use rng::RngSubject;
pub use vsock::VsockSubject;

use crate::guest::Guest;
use crate::run::{explain, run};
use crate::step::{Body, HostStep, RequestStep};
use crate::violation::Violation;
use crate::watch::Budget;
use crate::world::World;

/// A kind of device with its host's side.
pub trait Subject: Sized {
    /// The device.
    type Device: VirtioDevice;
    /// Name of the target and of the corpus.
    const NAME: &'static str;
    /// Queues of the device.
    const NR_QUEUES: usize;
    /// Whether the device returns chains in its own time, after the call that took them.
    const ASYNCHRONOUS: bool = false;
    /// Whether the blocks at the end of memory are the device's to give and take.
    const OWNS_BLOCKS: bool = false;
    /// Bytes that one call may move beyond the descriptors and what is bounded by the chain.
    const PAYLOAD: u64 = 0;
    /// Bytes that one chain may move beyond its descriptors.
    const CHAIN_PAYLOAD: u64 = 64;
    /// Ranges of memory that one chain may ask for beyond its buffers.
    const CHAIN_CHECKS: u64 = 0;

    /// A device and its host, at work on this memory.
    fn new(guest: &Rc<Guest>) -> (Self, Self::Device);

    /// The host does something.
    ///
    /// # Errors
    /// A host's own error; nothing a guest did may lead to one.
    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Self::Device>,
        guest: &Guest,
    ) -> Result<Effects, DeviceError>;

    /// What is under way at the host comes to its end: a good driver waits for that before it starts over.
    fn settle(_world: &mut World<Self>) {}

    /// The content of a request.
    fn body(&self, step: &RequestStep) -> Body;

    /// What is always true of the device.
    ///
    /// # Errors
    /// What is not.
    fn check(&self, transport: &MmioTransport<Self::Device>) -> Result<(), String>;

    /// Good requests of a driver.
    ///
    /// # Errors
    /// How one was not served.
    fn good(world: &mut World<Self>, stage: Stage) -> Result<(), String>;
}

/// What one call may take with a queue of `size` entries: each chain follows at most as many descriptors, each of which
/// is read once and leads to a check and an access or two; then the payload, a page or a descriptor at a time.
pub(crate) fn budget<S: Subject>(size: u16) -> Budget {
    let size = u64::from(size);
    Budget {
        accesses: 64 + (size + 1) * (8 * size + 64 + S::CHAIN_CHECKS) + S::PAYLOAD / 512,
        bytes: 64 + (size + 1) * (32 * size + 64 + S::CHAIN_PAYLOAD) + S::PAYLOAD,
    }
}

/// How far the driver is that makes good requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has just started: its queues are empty.
    Started,
    /// Its rings are in order, but chains of all sorts have gone through them, and some may wait there.
    Running,
}

/// A device as target of the fuzzer and owner of a corpus.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// [`Subject::NAME`].
    pub name: &'static str,
    /// [`crate::run`] of it.
    pub run: fn(&[u8]) -> Result<(), Violation>,
    /// [`crate::explain`] of it.
    pub explain: fn(&[u8]) -> String,
}

const fn target<S: Subject>() -> Target {
    Target {
        name: S::NAME,
        run: run::<S>,
        explain: explain::<S>,
    }
}

/// Every device that is fuzzed.
pub const ALL: &[Target] = &[
    target::<MemSubject>(),
    target::<ConsoleSubject>(),
    target::<BalloonSubject>(),
    target::<BlockSubject>(),
    target::<RngSubject>(),
    target::<VsockSubject>(),
    target::<NetSubject>(),
    target::<PortsSubject>(),
];

/// Something is not as it should be.
pub(crate) fn expect<T: PartialEq + fmt::Debug + ?Sized>(what: &str, is: &T, due: &T) -> Result<(), String> {
    if is == due {
        Ok(())
    } else {
        Err(format!("{what} is {is:x?} where {due:x?} is due"))
    }
}
