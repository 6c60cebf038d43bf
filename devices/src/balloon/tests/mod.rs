//! The balloon behind its registers, driven chain by chain.

mod free_pages;
mod hostile;
mod inflation;
mod model;
mod numbering;
mod statistics;
mod waiting;

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use super::*;
use crate::mmio::Effects;
use crate::testing::{Driver, PatchyMemory, Refusals, readable, writable};

/// Number of the first page of the test's memory, and how many it has.
pub(super) const FIRST: u32 = 256;
pub(super) const PAGES: u32 = 256;
const _: () = assert!(PatchyMemory::BASE == FIRST as u64 * PAGE_SIZE);
const _: () = assert!(PatchyMemory::SIZE as u64 == PAGES as u64 * PAGE_SIZE);
/// Where page numbers, statistics and command ids lie: behind the rings.
pub(super) const MESSAGE: u64 = PatchyMemory::BASE + 0x6000;

/// What the host has been asked to take back, in calls, and where it fails.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) discarded: Vec<Range<u64>>,
    pub(super) fails: bool,
    /// Ranges that the guest has not got; a discard there is an error of the device.
    pub(super) unplugged: Option<Refusals>,
}

/// A host whose memory has small pages in its lower part and pages of 16 KiB from [`LARGE`] on.
#[derive(Clone, Debug, Default)]
pub(super) struct TestBackend(pub(super) Rc<RefCell<Host>>);

/// Address at which large pages of the host begin.
pub(super) const LARGE: u64 = PatchyMemory::BASE + PatchyMemory::SIZE as u64 / 2;
pub(super) const LARGE_PAGE: u64 = 4 * PAGE_SIZE;
/// What the host likes to take at once below that.
pub(super) const HUGE_PAGE: u64 = 16 * PAGE_SIZE;

impl PageBackend for TestBackend {
    fn extent_at(&self, gpa: u64) -> Option<Extent> {
        let small = Extent {
            end: LARGE,
            host_page: PAGE_SIZE,
            preferred: HUGE_PAGE,
        };
        let large = Extent {
            end: PatchyMemory::END,
            host_page: LARGE_PAGE,
            preferred: LARGE_PAGE,
        };
        [(PatchyMemory::BASE, small), (LARGE, large)]
            .into_iter()
            .find_map(|(start, extent)| (start..extent.end).contains(&gpa).then_some(extent))
    }

    fn discard(&mut self, gpa: u64, len: u64) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        let range = gpa..gpa + len;
        let extent = self.extent_at(gpa).expect("the host has memory there");
        assert!(range.end <= extent.end && len > 0, "{range:x?} is in one extent");
        assert!(gpa.is_multiple_of(extent.host_page) && len.is_multiple_of(extent.host_page));
        if let Some(unplugged) = &host.unplugged {
            let touches = |gone: &Range<u64>| gone.start < range.end && range.start < gone.end;
            assert!(
                !unplugged.borrow().iter().any(touches),
                "{range:x?} is in memory that the guest does not have"
            );
        }
        if host.fails {
            return Err(io::Error::from_raw_os_error(22));
        }
        host.discarded.push(range);
        Ok(())
    }
}

pub(super) type BalloonDriver = Driver<Balloon<TestBackend>>;

pub(super) const EVERYTHING: BalloonOptions = BalloonOptions {
    deflate_on_oom: true,
    hinting: true,
    reporting: true,
};

/// A live device with every feature, that wants `target` pages, and its host.
pub(super) fn balloon_driver(target: u32) -> (BalloonDriver, TestBackend) {
    let backend = TestBackend::default();
    let driver = Driver::ready(Balloon::new(EVERYTHING, target, backend.clone()));
    backend.0.borrow_mut().unplugged = Some(driver.mem.refusals());
    (driver, backend)
}

/// Bytes of pages, by number from the start of the test's memory.
pub(super) fn bytes_of(pages: Range<u32>) -> Range<u64> {
    let gpa = |page: u32| u64::from(FIRST + page) * PAGE_SIZE;
    gpa(pages.start)..gpa(pages.end)
}

impl TestBackend {
    /// What was discarded since the last call.
    pub(super) fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0.borrow_mut().discarded)
    }
}

impl BalloonDriver {
    /// Sends page numbers, counted from the start of the test's memory, on a queue.
    pub(super) fn send_pages(&mut self, queue: Queue, pages: &[u32]) {
        let bytes: Vec<u8> = pages
            .iter()
            .flat_map(|page| (FIRST + page).to_le_bytes())
            .collect();
        self.send(queue as u16, &bytes);
    }

    /// Sends bytes in one buffer, which must come back.
    pub(super) fn send(&mut self, queue: u16, bytes: &[u8]) {
        self.mem.poke(MESSAGE, bytes);
        self.offer(queue, &[readable(MESSAGE, u32::try_from(bytes.len()).unwrap())]);
        let _ = self.kick(queue);
        let used = self.used(queue);
        assert_eq!(used.len(), 1, "the chain came back");
        assert_eq!(used[0].len, 0, "and nothing was written into it");
    }

    /// Sends free pages as buffers.
    pub(super) fn send_buffers(&mut self, queue: Queue, buffers: &[Range<u64>]) {
        let queue = queue as u16;
        let chain: Vec<_> = buffers
            .iter()
            .map(|range| writable(range.start, u32::try_from(range.end - range.start).unwrap()))
            .collect();
        self.offer(queue, &chain);
        let _ = self.kick(queue);
        assert_eq!(self.used(queue).len(), 1, "the chain came back");
    }

    pub(super) fn balloon(&self) -> &Balloon<TestBackend> {
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

    pub(super) fn write_config(&mut self, at: usize, bytes: &[u8]) {
        let offset = virtio_wire::mmio::CONFIG_OFFSET + at as u64;
        let effects = self.transport.write(&self.mem, offset, bytes);
        assert_eq!(effects, Effects::NONE);
    }
}
