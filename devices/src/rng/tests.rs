//! The entropy device behind its registers.

use virtio_wire::ring::UsedElement;

use super::*;
use crate::testing::{Driver, PatchyMemory, readable, writable};

const BUFFER: u64 = PatchyMemory::BASE + 0x8000;

/// A source of numbers that can be told apart, which may fail.
#[derive(Debug, Default)]
struct Counting {
    next: u8,
    fails: bool,
}

impl EntropySource for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if self.fails {
            return Err(io::ErrorKind::Unsupported.into());
        }
        for byte in bytes {
            self.next = self.next.wrapping_add(1);
            *byte = self.next;
        }
        Ok(())
    }
}

fn live() -> Driver<Rng<Counting>> {
    Driver::ready(Rng::new(Counting::default()))
}

#[test]
fn a_buffer_is_filled_however_it_is_cut() {
    let mut driver = live();
    driver.offer(0, &[writable(BUFFER, 3), writable(BUFFER + 0x100, 2)]);
    assert!(driver.kick(0).interrupt);
    assert_eq!(driver.used(0), [UsedElement { id: 0, len: 5 }]);
    assert_eq!(driver.mem.peek::<4>(BUFFER), [1, 2, 3, 0]);
    assert_eq!(driver.mem.peek::<3>(BUFFER + 0x100), [4, 5, 0]);
    assert_eq!(driver.transport.device().bytes(), 5);
}

#[test]
fn a_large_buffer_gets_its_first_part_filled() {
    let mut driver = live();
    driver.offer(0, &[writable(BUFFER, 0x1_0000)]);
    let _ = driver.kick(0);
    assert_eq!(driver.used(0), [UsedElement { id: 0, len: 4096 }]);
    assert_eq!(driver.mem.peek::<1>(BUFFER + 4096), [0], "nothing beyond");
}

#[test]
fn a_chain_that_is_wrong_is_refused_and_the_next_one_served() {
    for wrong in [
        vec![readable(BUFFER, 8)],
        vec![readable(BUFFER, 8), writable(BUFFER, 8)],
        vec![writable(BUFFER, 0)],
        vec![writable(PatchyMemory::END, 8)],
    ] {
        let mut driver = live();
        driver.offer(0, &wrong);
        driver.offer(0, &[writable(BUFFER, 1)]);
        let _ = driver.kick(0);
        let lengths: Vec<u32> = driver.used(0).iter().map(|used| used.len).collect();
        assert_eq!(lengths, [0, 1], "{wrong:?}");
        assert_eq!(driver.transport.guest_faults(), 1);
    }
}

#[test]
fn a_source_that_fails_is_the_hosts_fault() {
    let mut driver = Driver::ready(Rng::new(Counting {
        fails: true,
        ..Counting::default()
    }));
    driver.offer(0, &[writable(BUFFER, 1)]);
    assert!(driver.transport.process_queue(&driver.mem, 0).is_err());
    assert_eq!(driver.transport.guest_faults(), 0);
}
