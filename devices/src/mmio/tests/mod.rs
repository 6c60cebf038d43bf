//! The transport, driven register by register, around a device that does as little as possible.

mod hostile;
mod kept;
mod queues;
mod registers;

use vm_memory::GuestMemory;

use super::*;
use crate::device::Served;
use crate::queue::{Buffers, KeptChain};
use crate::testing::Driver;

/// A device with two queues that returns every chain, puts it back or keeps it, and remembers how it was called.
#[derive(Debug, Default)]
pub(super) struct Echo {
    pub(super) served: Vec<u16>,
    pub(super) resets: usize,
    pub(super) written: Vec<(u64, Vec<u8>)>,
    pub(super) puts_back: bool,
    pub(super) activated: Vec<u64>,
    pub(super) due: QueueSet,
    pub(super) has_news: bool,
    pub(super) in_use: Vec<QueueSet>,
    pub(super) keeps: bool,
    pub(super) kept: Vec<KeptChain>,
}

/// A feature that the device offers and needs, and one that it only offers.
pub(super) const NEEDED: u64 = 1 << 3;
pub(super) const OPTIONAL: u64 = 1 << 4;

/// The configuration space.
pub(super) const CONFIG: [u8; 5] = [1, 2, 3, 4, 5];

impl VirtioDevice for Echo {
    fn device_id(&self) -> u32 {
        77
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 32]
    }

    fn features(&self) -> u64 {
        NEEDED | OPTIONAL
    }

    fn required_features(&self) -> u64 {
        NEEDED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&CONFIG, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.written.push((offset, data.to_vec()));
    }

    fn queues_in_use(&mut self, queues: QueueSet) {
        self.in_use.push(queues);
    }

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        if self.puts_back {
            return Ok(Served::later());
        }
        self.served.push(queue);
        if self.keeps {
            self.kept.push(chain.keep());
            return Ok(Served::kept());
        }
        Ok(Served {
            driver_notified: self.has_news,
            ..Served::used(0)
        })
    }

    fn activate(&mut self, features: u64) {
        self.activated.push(features);
    }

    fn queues_due(&mut self) -> QueueSet {
        std::mem::take(&mut self.due)
    }

    fn reset(&mut self) {
        assert!(self.kept.is_empty(), "a reset waits for every chain");
        self.resets += 1;
    }
}

impl EchoDriver {
    /// The device is done with the chains that it kept, the last `count` of them, with 7 bytes written into each.
    pub(super) fn give_back(&mut self, count: usize) -> Effects {
        let kept = &mut self.transport.device_mut().kept;
        let chains: Vec<_> = kept.drain(kept.len().saturating_sub(count)..).collect();
        let completed = chains.into_iter().map(|chain| Completed {
            chain,
            written: 7,
            fault: None,
        });
        self.transport.complete(&self.mem, completed)
    }
}

pub(super) type EchoDriver = Driver<Echo>;

pub(super) fn live() -> EchoDriver {
    Driver::ready(Echo::default())
}
