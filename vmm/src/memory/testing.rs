//! For the tests of this folder: guest memory on every backing, and huge pages to make it of.

use std::fs::{self, File};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use vm_memory::{Bytes, GuestAddress};

use super::{GuestRam, Region, RegionLayout, RegionPlan};
use crate::machine::layout::{GIB, MIB, RamRange};
use crate::spec::{Backing, HugePage};

/// Where the first region starts.
pub(super) const START: u64 = 4 * GIB;
/// Blocks are huge pages.
pub(super) const BLOCK: u64 = 2 * MIB;
/// Boot RAM.
pub(super) const BOOT: u64 = 32 * MIB;

/// A plan for a region of so many blocks.
pub(super) fn plan(backing: Backing, blocks: u64) -> RegionPlan {
    let layout = RegionLayout {
        start: START,
        size: blocks * BLOCK,
        block_size: BLOCK,
    };
    RegionPlan {
        backing,
        ..layout.into()
    }
}

/// Boot RAM of `backing` and these regions.
pub(super) fn ram(backing: Backing, plans: &[RegionPlan]) -> GuestRam {
    let boot = RamRange { gpa: 0, size: BOOT };
    GuestRam::new(&[boot], backing, plans).unwrap()
}

/// Anonymous memory with a region of eight blocks.
pub(super) fn small() -> GuestRam {
    ram(Backing::Anonymous, &[plan(Backing::Anonymous, 8)])
}

pub(super) fn region(ram: &GuestRam) -> &Arc<Region> {
    &ram.regions()[0]
}

/// Writes to every byte of a range.
pub(super) fn fill(ram: &GuestRam, gpa: u64, size: u64) {
    let ones = vec![0xA5_u8; usize::try_from(size).unwrap()];
    ram.device_view().write_slice(&ones, GuestAddress(gpa)).unwrap();
}

/// Whether every byte of a range is zero.
pub(super) fn is_zero(ram: &GuestRam, gpa: u64, size: u64) -> bool {
    let mut bytes = vec![0xFF; usize::try_from(size).unwrap()];
    ram.device_view()
        .read_slice(&mut bytes, GuestAddress(gpa))
        .unwrap();
    bytes.iter().all(|byte| *byte == 0)
}

/// Runs `test` on each backing, of which `bytes` are made.
pub(super) fn on_every_backing(bytes: u64, test: impl Fn(Backing)) {
    test(Backing::Anonymous);
    test(Backing::Memfd);
    with_huge_pages(HugePage::Mib2, bytes / HugePage::Mib2.bytes(), || {
        test(Backing::Hugetlbfs(HugePage::Mib2));
    });
}

/// Runs `test` while the host's pool has exactly `pages` free huge pages.
///
/// # Panics
/// When the machine does not have them, or this user may not fill the pool: a test that cannot run has failed.
pub(super) fn with_huge_pages(page: HugePage, pages: u64, test: impl FnOnce()) {
    let pool = Pool::lock(page);
    // What others use stays, what is free serves.
    let wanted = pool.before - pool.read("free_hugepages") + pages;
    let got = pool.write(wanted).map(|()| pool.read("nr_hugepages"));
    assert!(
        matches!(got, Ok(got) if got == wanted),
        "{pages} huge pages of {} bytes cannot be had, with which the pool would have {wanted}: {got:?}",
        page.bytes()
    );
    test();
}

/// The pool, for one test at a time; as it was when dropped, by a test that fails too.
struct Pool {
    folder: String,
    before: u64,
    _lock: File,
}

impl Pool {
    fn lock(page: HugePage) -> Self {
        let lock = File::create(std::env::temp_dir().join("ballast-huge-pages.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut pool = Self {
            folder: format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10),
            before: 0,
            _lock: lock,
        };
        pool.before = pool.read("nr_hugepages");
        pool
    }

    fn write(&self, pages: u64) -> std::io::Result<()> {
        fs::write(self.path("nr_hugepages"), pages.to_string())
    }

    fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.folder)
    }

    fn read(&self, file: &str) -> u64 {
        let text = fs::read_to_string(self.path(file));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.write(self.before);
    }
}
