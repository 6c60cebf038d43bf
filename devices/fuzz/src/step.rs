//! What a guest and its host can do, one step at a time, and how bytes become steps.

use virtio_wire::mmio::Register;
use virtio_wire::ring::Descriptor;

use crate::guest::{BLOCKS, HIGH, LOW_SIZE, PAGE};
use crate::input::Input;
use crate::watch::Rings;

/// The longest chain of descriptors in one step.
const MAX_CHAIN: u8 = 9;

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Step {
    /// A write to a register, of the right width.
    Register(Register, u32),
    /// A write of any width, anywhere in the window or beyond it.
    RawWrite(u64, Vec<u8>),
    /// A read of any width.
    RawRead(u64, usize),
    /// The guest writes its memory.
    Poke(u64, Vec<u8>),
    /// The host processes a queue, whether it was notified or not.
    Process(u16),
    /// The host processes what was notified, until nothing is, for some rounds at most.
    ProcessNotified,
    /// The host does something to the device.
    Host(HostStep),
    /// A page of memory is taken away.
    Refuse(u64),
    /// It is there again.
    Allow(u64),
    /// A driver starts over, as it should.
    Initialise(Initialise),
    /// Descriptors as they come, the first one made available.
    Chain(Chain),
    /// A request that the device knows, well laid out.
    Request(RequestStep),
    /// The available index goes anywhere.
    AvailIndex {
        /// Which queue.
        queue: u16,
        /// What is added to it.
        by: u16,
    },
    /// The available ring's flags and `used_event` are set.
    AvailFlags {
        /// Which queue.
        queue: u16,
        /// Flags.
        flags: u16,
        /// Where the driver wants the next interrupt.
        used_event: u16,
    },
    /// A queue is disabled and set up anew with rings anywhere.
    SetUpQueue {
        /// Which queue.
        queue: u16,
        /// Entries.
        size: u32,
        /// Descriptor table, available ring, used ring.
        places: [u64; 3],
    },
}

/// What the host does; each device reads it in its own way.
#[derive(Clone, Debug)]
pub struct HostStep {
    /// Which of the things a host can do.
    pub choice: u8,
    /// How much of it.
    pub amount: u32,
    /// With which bytes.
    pub data: Vec<u8>,
}

/// A driver's start.
#[derive(Clone, Copy, Debug)]
pub struct Initialise {
    /// Which of the offered features are accepted, besides those without which nothing works.
    pub features: u64,
    /// Entries of each queue: two to the power of this.
    pub order: u8,
}

/// A chain, malformed or not.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Which queue.
    pub queue: u16,
    /// The descriptors; `next` is relative to the first.
    pub descriptors: Vec<Descriptor>,
    /// Whether they are in an indirect table at this address.
    pub indirect: Option<u64>,
    /// What is made available instead of the first descriptor.
    pub head: Option<u16>,
}

/// A request; each device reads it in its own way.
#[derive(Clone, Debug)]
pub struct RequestStep {
    /// Which kind of request.
    pub kind: u8,
    /// An address.
    pub gpa: u64,
    /// A number.
    pub number: u32,
    /// Bytes.
    pub data: Vec<u8>,
    /// How it is cut into descriptors.
    pub cuts: u8,
}

/// The content of a request.
#[derive(Clone, Debug)]
pub struct Body {
    /// The queue it goes to.
    pub queue: u16,
    /// What the device reads.
    pub readable: Vec<u8>,
    /// How many bytes it may write.
    pub writable: usize,
}

impl Step {
    /// The next step of an input, if there is anything left.
    pub fn decode(input: &mut Input<'_>) -> Option<Step> {
        if input.is_empty() {
            return None;
        }
        Some(match input.u8() % 24 {
            0 | 1 => {
                let register = Register::ALL[usize::from(input.u8()) % Register::ALL.len()];
                Step::Register(register, input.register_value())
            }
            2 => Step::RawWrite(Step::offset(input), input.bytes(9)),
            3 => Step::RawRead(Step::offset(input), usize::from(input.u8() % 65)),
            4 | 5 => Step::Poke(input.gpa(), input.bytes(48)),
            6 => Step::Process(queue(input)),
            7..=9 => Step::ProcessNotified,
            10..=12 => Step::Host(HostStep {
                choice: input.u8(),
                amount: input.len(),
                data: input.bytes(64),
            }),
            13 => Step::Refuse(page(input)),
            14 => Step::Allow(page(input)),
            15 | 16 => Step::Initialise(Initialise {
                features: input.u64(),
                order: input.u8() % 9,
            }),
            17 | 18 => Step::Chain(Chain::decode(input)),
            19 | 20 => Step::Request(RequestStep {
                kind: input.u8(),
                gpa: input.gpa(),
                number: input.len(),
                data: input.bytes(64),
                cuts: input.u8(),
            }),
            21 => Step::AvailIndex {
                queue: queue(input),
                by: input.u16(),
            },
            22 => Step::AvailFlags {
                queue: queue(input),
                flags: input.u16(),
                used_event: input.u16(),
            },
            _ => Step::SetUpQueue {
                queue: queue(input),
                size: input.register_value(),
                places: [input.gpa() & !0xf, input.gpa() & !1, input.gpa() & !3],
            },
        })
    }

    fn offset(input: &mut Input<'_>) -> u64 {
        match input.u8() % 4 {
            0 => u64::from(input.u8()),
            1 | 2 => 0x100 + u64::from(input.u8()),
            _ => input.u64(),
        }
    }
}

impl Chain {
    fn decode(input: &mut Input<'_>) -> Chain {
        let queue = queue(input);
        let shape = input.u8();
        let len = 1 + input.u8() % MAX_CHAIN;
        let descriptors = (1..=u16::from(len)).map(|next| {
            let (addr, len, kind) = (input.gpa(), input.len(), input.u8());
            let last = next == u16::from(MAX_CHAIN) || input.is_empty();
            // Mostly a chain that goes on to the next descriptor and ends with the last one.
            let flags = match kind % 8 {
                0..=2 => u16::from(!last),
                3..=5 => u16::from(!last) | 2,
                6 => 0,
                _ => u16::from(kind) >> 3,
            };
            let next = if kind & 0x80 != 0 { input.u8().into() } else { next };
            Descriptor {
                addr,
                len,
                flags,
                next,
            }
        });
        let mut descriptors: Vec<Descriptor> = descriptors.collect();
        if let Some(last) = descriptors.last_mut().filter(|_| shape & 1 == 0) {
            last.flags &= !1;
        }
        Chain {
            queue,
            descriptors,
            indirect: (shape & 6 == 6).then(|| input.gpa()),
            head: (shape & 0x38 == 0x38).then(|| input.u16()),
        }
    }
}

/// Where a queue lies that a step describes.
pub(crate) fn rings(size: u32, places: [u64; 3]) -> Rings {
    let [descriptor_table, avail_ring, used_ring] = places;
    Rings {
        // What is no size at all is written to the register all the same.
        size: u16::try_from(size).unwrap_or(1).max(1),
        descriptor_table,
        avail_ring,
        used_ring,
    }
}

fn queue(input: &mut Input<'_>) -> u16 {
    u16::from(input.u8() % 10)
}

/// Any page; high memory more often than the driver's own.
fn page(input: &mut Input<'_>) -> u64 {
    let byte = u64::from(input.u8());
    match byte % 4 {
        0 => byte / 4 % (LOW_SIZE / PAGE) * PAGE,
        1 => HIGH + byte / 4 * PAGE,
        _ => BLOCKS + byte / 4 % 16 * PAGE,
    }
}
