//! Guest memory as the VMM has it, and what the rows do with it through the devices: plug, unplug, inflate.

use std::error::Error;
use std::sync::Arc;

use devices::balloon::{Balloon, BalloonOptions};
use devices::mem::{MemDevice, RegionSpec, UnpluggedMemory};
use integration_tests::HugePages;
use virtio_wire::mem::{BlockRange, QUEUE_REQUEST, Request as MemRequest, Response};
use vm_memory::{Bytes, GuestAddress};
use vmm::machine::layout::{GIB, MIB, RamRange};
use vmm::memory::{GuestPages, GuestRam, RegionBackend, RegionLayout, RegionPlan};
use vmm::spec::{Backing, HugePage};

pub(crate) use crate::ceiling::Kind;
use crate::clock::Sample;
use crate::driver::{Driver, Request};

/// How much memory a row is about, in bytes.
pub(crate) const AMOUNT: u64 = GIB;
/// Size of a block, and what figures are given for, in bytes.
pub(crate) const BLOCK: u64 = 2 * MIB;
/// Page numbers in one request of Linux' balloon driver (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`): 1 MiB.
const PFNS: u64 = 256;
/// Bytes in such a request.
pub(crate) const PFNS_BYTES: u64 = PFNS * PAGE;
const PAGE: u64 = 4096;
/// Boot memory for rings and buffers.
const ROOM: u64 = 32 * MIB;
/// Where the region starts.
const REGION: u64 = 4 * GIB;

impl Kind {
    fn backing(self) -> Backing {
        match self {
            Kind::Anonymous => Backing::Anonymous,
            Kind::Memfd => Backing::Memfd,
            Kind::Huge => Backing::Hugetlbfs(HugePage::Mib2),
        }
    }

    /// What has to be held while memory of the kind is used: pages in the host's pool, for the region and the room.
    ///
    /// # Errors
    /// Why the host has none, in words.
    pub(crate) fn reserve(self) -> Result<Option<HugePages>, String> {
        match self {
            Kind::Anonymous | Kind::Memfd => Ok(None),
            Kind::Huge => HugePages::try_reserve((AMOUNT + ROOM + BLOCK) / BLOCK).map(Some),
        }
    }
}

/// A memory device on real memory, with its driver.
pub(crate) struct Blocks {
    driver: Driver<MemDevice<RegionBackend>>,
    ram: GuestRam,
}

impl Blocks {
    /// A region all of which is requested and nothing plugged.
    ///
    /// # Errors
    /// The host has no such memory.
    pub(crate) fn new(kind: Kind) -> Result<Blocks, Box<dyn Error>> {
        let layout = RegionLayout {
            start: REGION,
            size: AMOUNT,
            block_size: BLOCK,
        };
        let plan = RegionPlan {
            backing: kind.backing(),
            ..RegionPlan::from(layout)
        };
        let room = RamRange { gpa: 0, size: ROOM };
        let ram = GuestRam::new(&[room], Backing::Anonymous, &[plan])?;
        let spec = RegionSpec {
            addr: REGION,
            region_size: AMOUNT,
            block_size: BLOCK,
            requested_size: AMOUNT,
            node_id: None,
            unplugged: UnpluggedMemory::Inaccessible,
        };
        let backend = ram.backend(0).ok_or("the region has a backend")?;
        let driver = Driver::new(MemDevice::new(&spec, backend)?, ram.device_view());
        Ok(Blocks { driver, ram })
    }

    /// Plugs everything, so many blocks in each request.
    ///
    /// # Errors
    /// Not everything was plugged.
    pub(crate) fn plug(&mut self, blocks_at_once: u16) -> Result<Sample, Box<dyn Error>> {
        let sample = self.send(blocks_at_once, MemRequest::Plug)?;
        self.expect_plugged(AMOUNT)?;
        Ok(sample)
    }

    /// Unplugs everything, so many blocks in each request.
    ///
    /// # Errors
    /// Not everything was unplugged.
    pub(crate) fn unplug(&mut self, blocks_at_once: u16) -> Result<Sample, Box<dyn Error>> {
        let sample = self.send(blocks_at_once, MemRequest::Unplug)?;
        self.expect_plugged(0)?;
        Ok(sample)
    }

    /// Has every page of the region, as a guest has that has used it all and freed it.
    ///
    /// # Errors
    /// The region is not plugged.
    pub(crate) fn touch(&self) -> Result<(), Box<dyn Error>> {
        touch(&self.ram, REGION)
    }

    fn send(
        &mut self,
        blocks_at_once: u16,
        request: impl Fn(BlockRange) -> MemRequest,
    ) -> Result<Sample, Box<dyn Error>> {
        let stride = u64::from(blocks_at_once) * BLOCK;
        let requests: Vec<Request> = (0..AMOUNT / stride)
            .map(|index| {
                let blocks = BlockRange {
                    addr: REGION + index * stride,
                    nb_blocks: blocks_at_once,
                };
                Request {
                    readable: request(blocks).encode().to_vec(),
                    writable: u32::try_from(Response::SIZE).expect("ten bytes"),
                }
            })
            .collect();
        let mut sample = self.driver.send(QUEUE_REQUEST, &requests)?;
        sample.operations = AMOUNT / BLOCK;
        Ok(sample)
    }

    fn expect_plugged(&self, size: u64) -> Result<(), Box<dyn Error>> {
        let plugged = self.driver.transport.device().plugged_size();
        if plugged == size {
            return Ok(());
        }
        Err(format!("{plugged} bytes are plugged where {size} are due").into())
    }
}

/// A balloon on real boot memory, with its driver.
pub(crate) struct Pages {
    driver: Driver<Balloon<GuestPages>>,
    ram: Arc<GuestRam>,
}

impl Pages {
    /// A balloon that is empty and wants everything.
    ///
    /// # Errors
    /// The host has no such memory.
    pub(crate) fn new(kind: Kind) -> Result<Pages, Box<dyn Error>> {
        let all = RamRange {
            gpa: 0,
            size: ROOM + AMOUNT,
        };
        let ram = Arc::new(GuestRam::new(&[all], kind.backing(), &[])?);
        let pages = u32::try_from(AMOUNT / PAGE)?;
        let device = Balloon::new(
            BalloonOptions::default(),
            pages,
            GuestPages::new(Arc::clone(&ram)),
        );
        let driver = Driver::new(device, ram.device_view());
        Ok(Pages { driver, ram })
    }

    /// Has every page.
    ///
    /// # Errors
    /// The memory is not there.
    pub(crate) fn touch(&self) -> Result<(), Box<dyn Error>> {
        touch(&self.ram, ROOM)
    }

    /// Hands everything in, page by page in requests of Linux' size.
    ///
    /// # Errors
    /// Not everything is in the balloon.
    pub(crate) fn inflate(&mut self) -> Result<Sample, Box<dyn Error>> {
        let requests: Vec<Request> = (0..AMOUNT / PFNS_BYTES)
            .map(|index| {
                let first = (ROOM + index * PFNS_BYTES) / PAGE;
                let pfns = (first..first + PFNS).map(|pfn| u32::try_from(pfn).expect("below 16 TiB"));
                Request {
                    readable: pfns.flat_map(u32::to_le_bytes).collect(),
                    writable: 0,
                }
            })
            .collect();
        let mut sample = self.driver.send(0, &requests)?;
        sample.operations = AMOUNT / BLOCK;
        let forgotten = self.driver.transport.forget_pages(ROOM, ROOM + AMOUNT);
        let discarded = self.driver.transport.device().counters().discard_failures;
        if forgotten * PAGE != AMOUNT || discarded != 0 {
            return Err(format!("{forgotten} pages went into the balloon, {discarded} ranges failed").into());
        }
        Ok(sample)
    }
}

fn touch(ram: &GuestRam, start: u64) -> Result<(), Box<dyn Error>> {
    let pages = (start..start + AMOUNT).step_by(4096);
    for gpa in pages {
        ram.device_view().write_obj(1u8, GuestAddress(gpa))?;
    }
    Ok(())
}
