//! The memory device behind its registers, driven request by request.

mod malformed;
mod model;
mod resets;
mod responses;
mod unplugged_memory;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use virtio_wire::mem::{BlockRange, Request, Response, ResponseType};

use super::*;
use crate::testing::{Buffer, Driver, PatchyMemory, Refusals, readable, writable};

/// Blocks are pages, so that rings and buffers can lie in them.
pub(super) const BLOCK: u64 = 0x1000;
/// Number of blocks: the upper quarter of the test's memory.
pub(super) const NR_BLOCKS: u64 = 64;
/// Where the region starts.
pub(super) const REGION: u64 = PatchyMemory::END - NR_BLOCKS * BLOCK;
/// Where requests and responses lie, unless a test says otherwise.
pub(super) const REQUEST: u64 = PatchyMemory::BASE + 0x8000;
pub(super) const RESPONSE: u64 = PatchyMemory::BASE + 0x9000;

/// What a backend is to do and what it did.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) plugged: Vec<BlockRun>,
    pub(super) unplugged: Vec<BlockRun>,
    /// The next calls fail so; calls beyond succeed. `None` is a success.
    pub(super) outcomes: Vec<Option<BackendError>>,
    /// Where unplugged blocks are refused and plugged ones are not.
    pub(super) memory: Option<Refusals>,
}

/// A backend that does what its script says.
#[derive(Clone, Debug, Default)]
pub(super) struct ScriptedBackend(pub(super) Rc<RefCell<Script>>);

impl Script {
    fn outcome(&mut self) -> Result<(), BackendError> {
        let next = if self.outcomes.is_empty() {
            None
        } else {
            self.outcomes.remove(0)
        };
        next.map_or(Ok(()), Err)
    }
}

impl BlockBackend for ScriptedBackend {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        let mut script = self.0.borrow_mut();
        script.outcome()?;
        script.plugged.push(run);
        if let Some(refused) = &script.memory {
            let blocks: Vec<_> = run.indices().map(block_bytes).collect();
            refused.borrow_mut().retain(|range| !blocks.contains(range));
        }
        Ok(())
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        let mut script = self.0.borrow_mut();
        script.outcome()?;
        script.unplugged.push(run);
        if let Some(refused) = &script.memory {
            refused.borrow_mut().extend(run.indices().map(block_bytes));
        }
        Ok(())
    }
}

pub(super) fn block_bytes(index: u64) -> std::ops::Range<u64> {
    REGION + index * BLOCK..REGION + (index + 1) * BLOCK
}

pub(super) fn run(first: u64, count: u64) -> BlockRun {
    BlockRun::new(first, count).unwrap()
}

/// `count` blocks from block `first` on, as a driver names them.
pub(super) fn blocks(first: u64, count: u16) -> BlockRange {
    BlockRange {
        addr: REGION + first * BLOCK,
        nb_blocks: count,
    }
}

pub(super) type MemDriver = Driver<MemDevice<ScriptedBackend>>;

/// A live device that wants `requested_blocks` plugged, and its backend's script.
pub(super) fn mem_driver(requested_blocks: u64) -> (MemDriver, ScriptedBackend) {
    let backend = ScriptedBackend::default();
    let device = MemDevice::new(&spec(requested_blocks), backend.clone()).unwrap();
    (Driver::ready(device), backend)
}

/// What [`mem_driver`]'s device is made of.
pub(super) fn spec(requested_blocks: u64) -> RegionSpec {
    RegionSpec {
        addr: REGION,
        region_size: NR_BLOCKS * BLOCK,
        block_size: BLOCK,
        requested_size: requested_blocks * BLOCK,
        node_id: None,
        unplugged: UnpluggedMemory::Inaccessible,
    }
}

/// As [`mem_driver`], with every access to an unplugged block refused.
pub(super) fn protected_mem_driver(requested_blocks: u64) -> (MemDriver, ScriptedBackend) {
    let (driver, backend) = mem_driver(requested_blocks);
    (0..NR_BLOCKS).for_each(|index| driver.mem.refuse(block_bytes(index)));
    backend.0.borrow_mut().memory = Some(driver.mem.refusals());
    (driver, backend)
}

impl MemDriver {
    /// Sends a request and returns the response.
    pub(super) fn ask(&mut self, request: Request) -> Response {
        let before = self.used(0).len();
        assert_eq!(before, 0, "earlier chains were looked at");
        self.send(request);
        let _ = self.kick(0);
        self.response()
    }

    /// Sends a request and returns how it ended.
    pub(super) fn ask_type(&mut self, request: Request) -> ResponseType {
        self.ask(request).response_type()
    }

    /// Makes a request available without notifying.
    pub(super) fn send(&mut self, request: Request) -> u16 {
        self.mem.poke(REQUEST, &request.encode());
        self.mem.poke(RESPONSE, &[0xee; Response::SIZE]);
        self.offer(0, &[readable(REQUEST, 24), writable(RESPONSE, 10)])
    }

    /// The response to the only request that has been used.
    pub(super) fn response(&mut self) -> Response {
        let used = self.used(0);
        assert_eq!(used.len(), 1, "one chain was used");
        assert_eq!(used[0].len, 10, "the response is complete");
        Response::decode(&self.mem.peek(RESPONSE)).unwrap()
    }

    pub(super) fn device(&self) -> &MemDevice<ScriptedBackend> {
        self.transport.device()
    }

    /// The configuration as read through the registers, 32 bits at a time.
    pub(super) fn config(&self) -> Config {
        let mut bytes = [0; Config::SIZE];
        for (at, word) in bytes.chunks_exact_mut(4).enumerate() {
            self.transport
                .read(virtio_wire::mmio::CONFIG_OFFSET + 4 * at as u64, word);
        }
        Config::decode(&bytes)
    }

    pub(super) fn resize(&mut self, blocks: u64) -> Effects {
        self.transport.set_requested_size(blocks * BLOCK).unwrap()
    }
}

/// A chain of one buffer after the other, from `gpa` on.
pub(super) fn cut(gpa: u64, lens: &[u32], kind: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut at = gpa;
    lens.iter()
        .map(|&len| {
            let buffer = kind(at, len);
            at += u64::from(len);
            buffer
        })
        .collect()
}

pub(super) fn fault() -> Option<BackendError> {
    Some(BackendError::Fault(io::Error::from_raw_os_error(12)))
}
