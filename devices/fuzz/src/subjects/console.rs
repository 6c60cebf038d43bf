//! The console: two byte streams and emergency output. Its host keeps account of every byte of both streams.

use std::rc::Rc;

use devices::DeviceError;
use devices::console::{Console, ConsoleSize, EMERGENCY_LIMIT, FROM_GUEST_LIMIT, TO_GUEST_LIMIT};
use devices::mmio::{Effects, MmioTransport};
use virtio_wire::console::{QUEUE_RECEIVE, QUEUE_TRANSMIT};

use super::{Stage, Subject, expect};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

/// The console.
#[derive(Debug)]
pub struct ConsoleSubject {}

/// Takes everything that the guest has sent.
fn drain(world: &mut World<ConsoleSubject>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        world.with_host(|_, transport, _| {
            let (bytes, effects) = transport.take_from_guest(FROM_GUEST_LIMIT);
            all.extend(bytes);
            Ok(effects)
        });
        world.process_notified();
        if world.transport.device().from_guest_len() == 0 || all.len() > 64 * FROM_GUEST_LIMIT {
            return all;
        }
    }
}

impl Subject for ConsoleSubject {
    type Device = Console;
    const NAME: &'static str = "console";
    const NR_QUEUES: usize = 2;
    const PAYLOAD: u64 = (TO_GUEST_LIMIT + FROM_GUEST_LIMIT) as u64;

    fn new(_guest: &Rc<Guest>) -> (ConsoleSubject, Console) {
        let size = ConsoleSize { cols: 80, rows: 25 };
        (ConsoleSubject {}, Console::new(Some(size)))
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Console>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        Ok(match step.choice % 3 {
            0 => {
                let max = usize::try_from(step.amount).unwrap_or(usize::MAX);
                transport.take_from_guest(max).1
            }
            1 => transport.push_to_guest(&step.data).1,
            _ => {
                let len = usize::from(step.choice) * 512;
                transport.push_to_guest(&vec![step.choice; len]).1
            }
        })
    }

    fn body(&self, step: &RequestStep) -> Body {
        if step.kind.is_multiple_of(2) {
            Body {
                queue: QUEUE_RECEIVE,
                readable: Vec::new(),
                writable: usize::try_from(step.number % 0x400).unwrap_or(0),
            }
        } else {
            let repeat = 1 + usize::from(step.kind >> 4);
            Body {
                queue: QUEUE_TRANSMIT,
                readable: step.data.repeat(repeat),
                writable: 0,
            }
        }
    }

    fn check(&self, transport: &MmioTransport<Console>) -> Result<(), String> {
        let device = transport.device();
        for (what, len, limit) in [
            ("to the guest", device.to_guest_len(), TO_GUEST_LIMIT),
            ("from the guest", device.from_guest_len(), FROM_GUEST_LIMIT),
            (
                "of emergency output",
                device.emergency_output().len(),
                EMERGENCY_LIMIT,
            ),
        ] {
            if len > limit {
                return Err(format!("{len} bytes {what} are kept, more than {limit}"));
            }
        }
        Ok(())
    }

    fn good(world: &mut World<ConsoleSubject>, stage: Stage) -> Result<(), String> {
        drain(world);
        world.exchange(QUEUE_TRANSMIT, b"said by the guest", 0)?;
        expect("what the host hears", &drain(world)[..], b"said by the guest")?;

        // What was pushed before and has found no buffer comes first; buffers that wait take it.
        let waiting = world.transport.device().to_guest_len();
        let text = b"said by the host";
        let mut heard = Vec::new();
        let mut pushed = false;
        for _ in 0..=waiting / 0x400 + 2 * 128 {
            if !pushed && world.transport.device().to_guest_len() + text.len() <= TO_GUEST_LIMIT {
                world.with_host(|_, transport, _| Ok(transport.push_to_guest(text).1));
                pushed = true;
            }
            if world.transport.device().to_guest_len() == 0 {
                break;
            }
            heard = match world.exchange(QUEUE_RECEIVE, &[], 0x400) {
                Ok(bytes) => [heard, bytes].concat(),
                // An earlier buffer of the guest's has taken all there was.
                Err(_) if stage == Stage::Running && world.transport.device().to_guest_len() == 0 => {
                    return Ok(());
                }
                Err(why) => return Err(why),
            };
        }
        // A buffer that waited may have taken the first part of it.
        let tail = &heard[heard.len().saturating_sub(text.len())..];
        let due = if stage == Stage::Running {
            &text[text.len() - tail.len()..]
        } else {
            &text[..]
        };
        expect("what the guest hears", tail, due)
    }
}
