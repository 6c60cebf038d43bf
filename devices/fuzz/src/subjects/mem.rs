//! The memory device over the blocks at the end of memory. Its host refuses unplugged blocks, is busy now and then, and
//! holds every call against its own map.

use std::cell::RefCell;
use std::rc::Rc;

use devices::DeviceError;
use devices::mem::{BackendError, BlockBackend, BlockRun, MemDevice, RegionSpec, UnpluggedMemory};
use devices::mmio::{Effects, Lifecycle, MmioTransport};
use virtio_wire::mem::{BlockRange, QUEUE_REQUEST, Request, Response, ResponseType};

use super::{Stage, Subject, expect};
use crate::guest::{BLOCKS, Guest, NR_BLOCKS, PAGE};
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

/// What the host knows of its blocks.
#[derive(Debug, Default)]
struct Host {
    /// Bit `i`: block `i` is plugged.
    plugged: u32,
    /// Refuses the next so many calls.
    busy: u8,
    /// What the device should not have asked.
    broken: Option<String>,
}

/// The host behind the blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    guest: Rc<Guest>,
    host: Rc<RefCell<Host>>,
}

impl Blocks {
    /// Takes one call: all of `run` must be in the state before it, and is in the other one after.
    fn change(&mut self, run: BlockRun, plug: bool) -> Result<(), BackendError> {
        let mut host = self.host.borrow_mut();
        if host.busy > 0 {
            host.busy -= 1;
            return Err(BackendError::Busy);
        }
        if run.end() > NR_BLOCKS {
            host.broken = Some(format!("{run:?} reaches beyond the region"));
            return Ok(());
        }
        for index in run.indices() {
            let bit = 1 << index;
            if (host.plugged & bit != 0) == plug {
                host.broken = Some(format!("block {index} of {run:?} is so already"));
            }
            let gpa = BLOCKS + index * PAGE;
            if plug {
                host.plugged |= bit;
                self.guest.allow(gpa);
            } else {
                host.plugged &= !bit;
                self.guest.refuse(gpa);
            }
        }
        Ok(())
    }
}

impl BlockBackend for Blocks {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.change(run, true)
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.change(run, false)
    }
}

/// The memory device.
#[derive(Debug)]
pub struct MemSubject {
    blocks: Blocks,
}

impl Subject for MemSubject {
    type Device = MemDevice<Blocks>;
    const NAME: &'static str = "mem";
    const NR_QUEUES: usize = 1;
    const OWNS_BLOCKS: bool = true;

    fn new(guest: &Rc<Guest>) -> (MemSubject, MemDevice<Blocks>) {
        (0..NR_BLOCKS).for_each(|index| guest.refuse(BLOCKS + index * PAGE));
        let blocks = Blocks {
            guest: Rc::clone(guest),
            host: Rc::default(),
        };
        let spec = RegionSpec {
            addr: BLOCKS,
            region_size: NR_BLOCKS * PAGE,
            block_size: PAGE,
            requested_size: 8 * PAGE,
            node_id: Some(1),
            unplugged: UnpluggedMemory::Inaccessible,
        };
        let device = MemDevice::new(&spec, blocks.clone()).expect("the region's numbers fit together");
        (MemSubject { blocks }, device)
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<MemDevice<Blocks>>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        if step.choice.is_multiple_of(4) {
            self.blocks.host.borrow_mut().busy = step.choice / 4 % 4;
            return Ok(Effects::NONE);
        }
        if step.choice == 0xff {
            // What stays plugged is for `check` to compare.
            let _ = transport.reset_machine()?;
            return Ok(Effects {
                lifecycle: Some(Lifecycle::Reset),
                ..Effects::NONE
            });
        }
        // Also sizes that the device has to refuse: then nothing happens.
        let size = if step.choice % 4 == 1 {
            u64::from(step.amount)
        } else {
            u64::from(step.amount % 18) * PAGE
        };
        Ok(transport.set_requested_size(size).unwrap_or(Effects::NONE))
    }

    fn body(&self, step: &RequestStep) -> Body {
        let blocks = BlockRange {
            addr: if step.kind & 0x80 == 0 {
                BLOCKS + u64::from(step.number % 20) * PAGE
            } else {
                step.gpa
            },
            nb_blocks: u16::try_from(step.data.len() % 18).unwrap_or(0),
        };
        let request = match step.kind % 8 {
            0..=2 => Request::Plug(blocks),
            3 | 4 => Request::Unplug(blocks),
            5 => Request::UnplugAll,
            _ => Request::State(blocks),
        };
        let mut readable = request.encode().to_vec();
        if step.kind & 0x40 != 0 {
            // A type that may not exist.
            readable[0] = step.data.first().copied().unwrap_or(9);
        }
        Body {
            queue: QUEUE_REQUEST,
            readable,
            writable: if step.kind & 0x20 == 0 {
                Response::SIZE
            } else {
                step.data.len()
            },
        }
    }

    fn check(&self, transport: &MmioTransport<MemDevice<Blocks>>) -> Result<(), String> {
        let host = self.blocks.host.borrow();
        if let Some(broken) = &host.broken {
            return Err(broken.clone());
        }
        let device = transport.device();
        let config = device.config();
        let known = device.blocks();
        let map = (0..NR_BLOCKS)
            .filter(|&index| known.is_plugged(devices::mem::BlockIndex(index)))
            .fold(0u32, |map, index| map | 1 << index);
        expect("the device's block map", &map, &host.plugged)?;
        let plugged = u64::from(host.plugged.count_ones()) * PAGE;
        expect("plugged_size", &config.plugged_size, &plugged)?;
        let highest = u64::from(32 - host.plugged.leading_zeros()) * PAGE;
        if config.usable_region_size < highest.max(config.requested_size) {
            return Err(format!(
                "usable_region_size is too small: {config:x?}, plugged {:#x}",
                host.plugged
            ));
        }
        Ok(())
    }

    fn good(world: &mut World<MemSubject>, _stage: Stage) -> Result<(), String> {
        world.subject.blocks.host.borrow_mut().busy = 0;
        let mut response = None;
        world.with_host(|_, transport, _| {
            let effects = transport.set_requested_size(NR_BLOCKS * PAGE);
            response = effects.as_ref().err().map(ToString::to_string);
            Ok(effects.unwrap_or(Effects::NONE))
        });
        response.map_or(Ok(()), Err)?;
        let first = BlockRange {
            addr: BLOCKS,
            nb_blocks: 1,
        };
        use ResponseType::{Ack, Error};
        for (request, expected) in [
            (Request::UnplugAll, Ack),
            (Request::Plug(first), Ack),
            (Request::State(first), Ack),
            (Request::Plug(first), Error),
            (Request::Unplug(first), Ack),
            (Request::Unplug(first), Error),
        ] {
            let bytes = world.exchange(QUEUE_REQUEST, &request.encode(), Response::SIZE)?;
            let answer = <[u8; Response::SIZE]>::try_from(bytes)
                .map_err(|bytes| format!("{request:?} is answered with {} bytes", bytes.len()))?;
            let response = Response::decode(&answer).map_err(|error| format!("{request:?}: {error}"))?;
            world.subject.check(&world.transport)?;
            expect(&format!("{request:?}"), &response.response_type(), &expected)?;
        }
        Ok(())
    }
}
