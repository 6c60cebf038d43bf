//! The balloon with everything that it can offer. Its host discards pages by zeroing them, part of memory in pages of
//! 16 KiB, and looks whether each was ever named by the guest.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use devices::DeviceError;
use devices::balloon::{Balloon, BalloonOptions, Extent, MAX_PFNS, PageBackend};
use devices::mmio::{Effects, MmioTransport};
use virtio_wire::balloon::feature;
use virtio_wire::ring::{DESC_F_WRITE, Descriptor};

use super::{Stage, Subject, expect};
use crate::guest::{BLOCKS, Guest, HIGH, HIGH_SIZE, LOW_SIZE, PAGE};
use crate::step::{Body, Chain, HostStep, RequestStep, Step};
use crate::world::World;

/// Pages of the host at the end of memory.
const LARGE_PAGE: u64 = 4 * PAGE;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const REPORTING: u16 = 4;

/// The host behind the pages.
#[derive(Clone, Debug)]
pub struct Pages {
    guest: Rc<Guest>,
    /// What the device should not have asked.
    broken: Rc<RefCell<Option<String>>>,
}

impl Pages {
    fn judge(&self, gpa: u64, len: u64) -> Result<(), String> {
        let extent = self.extent_at(gpa).ok_or("nothing is there")?;
        if len == 0 || gpa + len > extent.end {
            return Err("it is not in one extent".to_owned());
        }
        if !gpa.is_multiple_of(extent.host_page) || !len.is_multiple_of(extent.host_page) {
            return Err("it is not whole pages".to_owned());
        }
        if !self.guest.owns(gpa, len) {
            return Err("the guest does not have it".to_owned());
        }
        let named = self.guest.watch().named_pages();
        let pages = (gpa..gpa + len).step_by(0x1000);
        pages
            .filter(|&page| named & Guest::page_bit(page) == 0)
            .map(|page| Err(format!("the guest has never named the page at {page:#x}")))
            .next()
            .unwrap_or(Ok(()))
    }
}

impl PageBackend for Pages {
    fn extent_at(&self, gpa: u64) -> Option<Extent> {
        let (end, host_page, preferred) = match gpa {
            _ if gpa < LOW_SIZE => (LOW_SIZE, PAGE, PAGE),
            _ if (HIGH..BLOCKS).contains(&gpa) => (BLOCKS, PAGE, LARGE_PAGE),
            _ if (BLOCKS..HIGH + HIGH_SIZE).contains(&gpa) => (HIGH + HIGH_SIZE, LARGE_PAGE, LARGE_PAGE),
            _ => return None,
        };
        Some(Extent {
            end,
            host_page,
            preferred,
        })
    }

    fn discard(&mut self, gpa: u64, len: u64) -> io::Result<()> {
        if let Err(why) = self.judge(gpa, len) {
            let broken = format!("{len:#x} bytes at {gpa:#x} are discarded, but {why}");
            self.broken.borrow_mut().get_or_insert(broken);
            return Ok(());
        }
        let zeros = vec![0; usize::try_from(len).unwrap_or(0)];
        self.guest.host_writes(gpa, &zeros);
        Ok(())
    }
}

/// The balloon.
#[derive(Debug)]
pub struct BalloonSubject {
    pages: Pages,
}

fn pfn(gpa: u64) -> [u8; 4] {
    u32::try_from(gpa / PAGE).unwrap_or(u32::MAX).to_le_bytes()
}

impl Subject for BalloonSubject {
    type Device = Balloon<Pages>;
    const NAME: &'static str = "balloon";
    const NR_QUEUES: usize = 5;
    const CHAIN_PAYLOAD: u64 = 4 * MAX_PFNS as u64;
    const CHAIN_CHECKS: u64 = 2 * MAX_PFNS as u64;

    fn new(guest: &Rc<Guest>) -> (BalloonSubject, Balloon<Pages>) {
        let pages = Pages {
            guest: Rc::clone(guest),
            broken: Rc::default(),
        };
        let options = BalloonOptions {
            deflate_on_oom: true,
            hinting: true,
            reporting: true,
        };
        let device = Balloon::new(options, 4, pages.clone());
        (BalloonSubject { pages }, device)
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Balloon<Pages>>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        Ok(match step.choice % 6 {
            0 | 1 => transport.set_balloon_target(step.amount),
            2 => transport.request_statistics(),
            3 => transport.start_hinting(),
            4 => transport.stop_hinting(),
            _ => {
                let gpa = u64::from(step.amount);
                transport.forget_pages(gpa, gpa + PAGE * step.data.len() as u64);
                Effects::NONE
            }
        })
    }

    fn body(&self, step: &RequestStep) -> Body {
        let queue = u16::from(step.kind % 5);
        let readable = match queue {
            INFLATE | DEFLATE => {
                let page = |&byte: &u8| {
                    let at = u64::from(byte) % 48 * PAGE;
                    if at < LOW_SIZE { at } else { HIGH + at - LOW_SIZE }
                };
                step.data.iter().map(page).flat_map(pfn).collect()
            }
            STATS => step.data.clone(),
            // A command id, mostly one that can be.
            _ => step.number.to_le_bytes().to_vec(),
        };
        Body {
            queue,
            readable,
            writable: usize::from(step.kind >> 6) * 0x100,
        }
    }

    fn check(&self, transport: &MmioTransport<Balloon<Pages>>) -> Result<(), String> {
        if let Some(broken) = &*self.pages.broken.borrow() {
            return Err(broken.clone());
        }
        let pages = transport.device().pages();
        let everywhere = transport.device().pages_between(0, HIGH + HIGH_SIZE);
        expect("the number of pages in the balloon", &pages, &everywhere)
    }

    fn good(world: &mut World<BalloonSubject>, stage: Stage) -> Result<(), String> {
        if stage == Stage::Running {
            // Statistics may wait, and which queue is which is not for an outsider to say.
            return Ok(());
        }
        let page = HIGH + PAGE;
        let held = |world: &World<BalloonSubject>| {
            let device = world.transport.device();
            device.pages_between(page, page + PAGE)
        };
        world.guest.poke(page, &[7]);
        // Nothing is waited for beyond the target.
        world.with_host(|_, transport, _| Ok(transport.set_balloon_target(0)));
        world.exchange(INFLATE, &pfn(page), 0)?;
        expect("the page in the balloon", &held(world), &1)?;
        expect("what is left in it", &world.guest.peek(page), &[0])?;
        world.exchange(DEFLATE, &pfn(page), 0)?;
        expect("the page in the balloon after deflation", &held(world), &0)?;
        let features = world.transport.negotiated_features();
        if features & feature::STATS_VQ != 0 {
            let before = world.transport.device().counters().statistics;
            let buffer = world.offer(STATS, &[0; 10], 0)?;
            world.process_notified();
            world.with_host(|_, transport, _| Ok(transport.request_statistics()));
            buffer.collect(world)?;
            let after = world.transport.device().counters().statistics;
            expect("the number of statistics", &after, &(before + 1))?;
        }
        if features & feature::PAGE_REPORTING != 0 {
            report(world, page)?;
        }
        Ok(())
    }
}

/// A free page is reported, and goes.
fn report(world: &mut World<BalloonSubject>, page: u64) -> Result<(), String> {
    let poisoned = world
        .transport
        .device()
        .poison()
        .is_some_and(|poison| poison != 0);
    world.guest.poke(page, &[7]);
    let descriptor = Descriptor {
        addr: page,
        len: 0x1000,
        flags: DESC_F_WRITE,
        next: 0,
    };
    let chain = Chain {
        queue: REPORTING,
        descriptors: vec![descriptor],
        indirect: None,
        head: None,
    };
    let before = world.transport.device().counters().reported;
    world
        .take(&Step::Chain(chain))
        .map_err(|violation| violation.to_string())?;
    world.process_notified();
    let after = world.transport.device().counters().reported;
    expect("the bytes reported", &after, &(before + PAGE))?;
    expect(
        "what is left in a reported page",
        &world.guest.peek(page),
        &[u8::from(poisoned) * 7],
    )
}
