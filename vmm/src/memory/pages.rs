//! Single pages that a guest does not need for the moment: what the balloon device gives back to the host.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::balloon::{Extent, PageBackend};
use vm_memory::GuestMemoryRegion;

use super::GuestRam;

/// Guest memory by pages. For the event loop only, where no block can go meanwhile.
#[derive(Debug)]
pub struct GuestPages {
    ram: Arc<GuestRam>,
    shown_free: Arc<AtomicU64>,
}

impl GuestPages {
    /// All of `ram`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            ram,
            shown_free: Arc::default(),
        }
    }

    /// Bytes given back that the host, asked right after, showed free; kept up to date.
    #[must_use]
    pub fn shown_free(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shown_free)
    }
}

impl PageBackend for GuestPages {
    fn extent_at(&self, gpa: u64) -> Option<Extent> {
        self.ram.device_view().ranges().find_map(|range| {
            let start = range.start_addr().0;
            let end = start + range.len();
            (start..end).contains(&gpa).then(|| Extent {
                end,
                host_page: range.host_page(),
                preferred: range.discards_at_once(),
            })
        })
    }

    fn discard(&mut self, gpa: u64, len: u64) -> io::Result<()> {
        let discarded = self.ram.discard(gpa, len).map_err(io::Error::other)?;
        self.shown_free.fetch_add(discarded.shown, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::{GuestRam, RegionLayout, Resident};
    use super::*;
    use crate::machine::layout::{MIB, RamRange};
    use crate::spec::Backing;

    const REGION: u64 = 4 << 30;

    fn pages() -> (Arc<GuestRam>, GuestPages) {
        let boot = RamRange {
            gpa: 0,
            size: 32 * MIB,
        };
        let layout = RegionLayout {
            start: REGION,
            size: 8 * MIB,
            block_size: 2 * MIB,
        };
        let ram = Arc::new(GuestRam::new(&[boot], Backing::Anonymous, &[layout.into()]).unwrap());
        (Arc::clone(&ram), GuestPages::new(ram))
    }

    #[test]
    fn extents_are_the_ranges_of_memory() {
        let (_, pages) = pages();
        let end_at = |gpa| pages.extent_at(gpa).map(|extent| extent.end);
        assert_eq!(end_at(0), Some(32 * MIB));
        assert_eq!(end_at(32 * MIB - 1), Some(32 * MIB));
        assert_eq!(end_at(32 * MIB), None);
        assert_eq!(end_at(REGION), Some(REGION + 8 * MIB));
        assert_eq!(end_at(REGION + 8 * MIB), None);
    }

    #[test]
    fn discarded_pages_are_the_hosts_again_and_read_as_zeros() {
        let (ram, mut pages) = pages();
        ram.backend(0).unwrap().plug_blocks(1, 1).unwrap();
        let memory = ram.device_view();
        let full = vec![0xA5u8; usize::try_from(2 * MIB).unwrap()];
        for gpa in [4 * MIB, REGION + 2 * MIB] {
            memory.write_slice(&full, GuestAddress(gpa)).unwrap();
            let before = Resident::measure(&ram).unwrap().guest_bytes;
            // All but the first page of it.
            pages.discard(gpa + 4096, 2 * MIB - 4096).unwrap();
            let after = Resident::measure(&ram).unwrap().guest_bytes;
            assert!(before - after >= 2 * MIB - 4096, "{before} before, {after} after");
            let byte = |gpa| memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
            assert_eq!(
                (byte(gpa + 4095), byte(gpa + 4096), byte(gpa + 2 * MIB - 1)),
                (0xA5, 0, 0)
            );
        }
        assert_eq!(pages.shown_free().load(Ordering::Relaxed), 2 * (2 * MIB - 4096));
    }
}
