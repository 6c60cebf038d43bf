//! The console with two named ports: streams in both directions on each, and the control queues between.

use std::rc::Rc;

use devices::DeviceError;
use devices::console::{Console, FROM_GUEST_LIMIT, PortName, TO_GUEST_LIMIT};
use devices::mmio::{Effects, MmioTransport};
use virtio_wire::console::{
    Control, QUEUE_CONTROL_RECEIVE, QUEUE_CONTROL_TRANSMIT, QUEUE_FIRST_PORT, QUEUE_TRANSMIT, event, feature,
};

use super::{Stage, Subject, expect};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

/// The console and its named ports.
const NR_PORTS: usize = 3;

/// The console with named ports.
#[derive(Debug)]
pub struct PortsSubject;

fn control(id: u32, event: u16, value: u16) -> Vec<u8> {
    Control { id, event, value }.encode().to_vec()
}

/// Takes everything that the guest has sent through a port.
fn drain(world: &mut World<PortsSubject>, port: usize) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        world.with_host(|_, transport, _| {
            let (bytes, effects) = transport.take_from_port(port, FROM_GUEST_LIMIT);
            all.extend(bytes);
            Ok(effects)
        });
        world.process_notified();
        if all.len() == before || all.len() > 64 * FROM_GUEST_LIMIT {
            return all;
        }
    }
}

/// The guest hears what the host says through an open port, behind what was said before.
fn listen(world: &mut World<PortsSubject>, port: usize, queue: u16) -> Result<(), String> {
    const BUFFER: usize = 0x400;
    for _ in 0..=TO_GUEST_LIMIT / BUFFER {
        let waiting = world.transport.device().port(port).map(|port| port.to_guest_len);
        if waiting == Some(0) {
            break;
        }
        world.exchange(queue, &[], BUFFER)?;
    }
    world.with_host(|_, transport, _| Ok(transport.push_to_port(port, b"said by the host").1));
    let heard = world.exchange(queue, &[], BUFFER)?;
    expect("what the guest hears", &heard[..], b"said by the host")
}

impl Subject for PortsSubject {
    type Device = Console;
    const NAME: &'static str = "ports";
    const NR_QUEUES: usize = 2 * NR_PORTS + 2;
    const PAYLOAD: u64 = (TO_GUEST_LIMIT + FROM_GUEST_LIMIT) as u64;

    fn new(_guest: &Rc<Guest>) -> (PortsSubject, Console) {
        let names = ["one", "two"].map(|name| PortName::new(name).expect("a name that can be"));
        (PortsSubject, Console::with_ports(None, names.to_vec()))
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Console>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        // One of them is not there.
        let port = usize::from(step.choice >> 3) % (NR_PORTS + 1);
        Ok(match step.choice % 5 {
            0 => {
                let max = usize::try_from(step.amount).unwrap_or(usize::MAX);
                transport.take_from_port(port, max).1
            }
            1 => transport.push_to_port(port, &step.data).1,
            2 => transport.set_host_open(port, true),
            3 => transport.set_host_open(port, false),
            _ => {
                let len = usize::from(step.choice) * 512;
                transport.push_to_port(port, &vec![step.choice; len]).1
            }
        })
    }

    fn body(&self, step: &RequestStep) -> Body {
        let queue = u16::from(step.kind % 8);
        if queue == QUEUE_CONTROL_TRANSMIT {
            let known = [event::DEVICE_READY, event::PORT_READY, event::PORT_OPEN];
            let event = match step.kind >> 5 {
                at @ 0..3 => known[usize::from(at)],
                _ => step.cuts.into(),
            };
            let mut readable = control(step.number % 5, event, u16::from(step.kind >> 3 & 3));
            readable.truncate(8 - step.data.len().saturating_sub(56));
            return Body {
                queue,
                readable,
                writable: 0,
            };
        }
        if queue.is_multiple_of(2) {
            let writable = usize::try_from(step.number % 0x400).unwrap_or(0);
            Body {
                queue,
                readable: Vec::new(),
                writable,
            }
        } else {
            Body {
                queue,
                readable: step.data.clone(),
                writable: 0,
            }
        }
    }

    fn check(&self, transport: &MmioTransport<Console>) -> Result<(), String> {
        for number in 0..NR_PORTS {
            let port = transport.device().port(number).ok_or("a port is gone")?;
            if port.to_guest_len > TO_GUEST_LIMIT || port.from_guest_len > FROM_GUEST_LIMIT {
                return Err(format!("port {number} keeps more than it may: {port:?}"));
            }
        }
        Ok(())
    }

    fn good(world: &mut World<PortsSubject>, stage: Stage) -> Result<(), String> {
        if stage == Stage::Running {
            // Buffers that wait take what comes first.
            return Ok(());
        }
        let multiport = world.transport.negotiated_features() & feature::MULTIPORT != 0;
        let (port, queue) = if multiport {
            world.exchange(
                QUEUE_CONTROL_TRANSMIT,
                &control(u32::MAX, event::DEVICE_READY, 1),
                0,
            )?;
            for number in 0..NR_PORTS {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                let told = world.exchange(QUEUE_CONTROL_RECEIVE, &[], 0x100)?;
                expect(
                    "what the driver is told",
                    &told,
                    &control(number, event::PORT_ADD, 1),
                )?;
            }
            world.exchange(QUEUE_CONTROL_TRANSMIT, &control(1, event::PORT_READY, 1), 0)?;
            let told = world.exchange(QUEUE_CONTROL_RECEIVE, &[], 0x100)?;
            let name = [&control(1, event::PORT_NAME, 1)[..], b"one"].concat();
            expect("the port's name", &told, &name)?;
            world.exchange(QUEUE_CONTROL_TRANSMIT, &control(1, event::PORT_OPEN, 1), 0)?;
            (1, QUEUE_FIRST_PORT + 1)
        } else {
            (0, QUEUE_TRANSMIT)
        };
        drain(world, port);
        world.exchange(queue, b"said by the guest", 0)?;
        expect(
            "what the host hears",
            &drain(world, port)[..],
            b"said by the guest",
        )?;
        listen(world, port, queue - 1)
    }
}
