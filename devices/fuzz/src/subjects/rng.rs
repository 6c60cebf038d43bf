//! The entropy device. Its host hands out bytes that are never zero, so that what was written can be told.

use std::io;
use std::rc::Rc;

use devices::DeviceError;
use devices::mmio::{Effects, MmioTransport};
use devices::rng::{EntropySource, MOST_BYTES, Rng};

use super::{Stage, Subject};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

/// A source that counts.
#[derive(Debug, Default)]
pub struct Counting(u8);

impl EntropySource for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        for byte in bytes {
            self.0 = self.0 % 255 + 1;
            *byte = self.0;
        }
        Ok(())
    }
}

/// The entropy device.
#[derive(Debug)]
pub struct RngSubject;

impl Subject for RngSubject {
    type Device = Rng<Counting>;
    const NAME: &'static str = "rng";
    const NR_QUEUES: usize = 1;
    const CHAIN_PAYLOAD: u64 = MOST_BYTES as u64;

    fn new(_guest: &Rc<Guest>) -> (RngSubject, Rng<Counting>) {
        (RngSubject, Rng::new(Counting::default()))
    }

    fn host(
        &mut self,
        _step: &HostStep,
        _transport: &mut MmioTransport<Rng<Counting>>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        Ok(Effects::NONE)
    }

    fn body(&self, step: &RequestStep) -> Body {
        Body {
            queue: 0,
            readable: Vec::new(),
            writable: usize::try_from(step.number % 0x400).unwrap_or(0),
        }
    }

    fn check(&self, _transport: &MmioTransport<Rng<Counting>>) -> Result<(), String> {
        Ok(())
    }

    fn good(world: &mut World<RngSubject>, _stage: Stage) -> Result<(), String> {
        let bytes = world.exchange(0, &[], 100)?;
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(format!("the random bytes are {bytes:x?}"));
        }
        Ok(())
    }
}
