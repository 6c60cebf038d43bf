//! Malformed requests: each is answered or returned as far as it can be, counted, and followed by a good one, sent in the
//! same notification, that is still served.

use virtio_wire::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, UsedElement};

use super::*;
use crate::fault::GuestFault;

/// Where the good request that follows lies.
const GOOD_REQUEST: u64 = PatchyMemory::BASE + 0xa000;
const GOOD_RESPONSE: u64 = PatchyMemory::BASE + 0xb000;

/// What becomes of a malformed request.
struct Verdict {
    /// Entries of the used ring, before the one for the good request.
    used: Vec<UsedElement>,
    /// The bytes at RESPONSE.
    response: [u8; 10],
    /// The fault that was counted, if one was.
    fault: Option<GuestFault>,
}

const UNTOUCHED: [u8; 10] = [0xee; 10];
const ERROR: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Sends what `malform` makes available, then a good request, notifies once, and checks the good one.
fn verdict_of(malform: impl FnOnce(&mut MemDriver)) -> Verdict {
    let (mut driver, _) = mem_driver(8);
    driver.mem.poke(REQUEST, &Request::Plug(blocks(0, 4)).encode());
    driver.mem.poke(RESPONSE, &UNTOUCHED);
    malform(&mut driver);
    let good = offer_good(&mut driver);
    let effects = driver.kick(0);

    let mut used = driver.used(0);
    assert_eq!(
        used.pop(),
        Some(UsedElement {
            id: good.into(),
            len: 10
        }),
        "the good request was served"
    );
    assert_eq!(driver.mem.peek(GOOD_RESPONSE), [0; 10], "and acknowledged");
    assert_eq!(
        driver.device().plugged_size(),
        BLOCK,
        "and nothing else was plugged"
    );
    assert!(effects.interrupt);
    assert_eq!(driver.status(), 15);
    let fault = driver.transport.last_guest_fault();
    assert_eq!(
        driver.transport.guest_faults(),
        u64::from(fault.is_some()),
        "one fault is counted once"
    );
    Verdict {
        used,
        response: driver.mem.peek(RESPONSE),
        fault,
    }
}

fn offer_good(driver: &mut MemDriver) -> u16 {
    driver
        .mem
        .poke(GOOD_REQUEST, &Request::Plug(blocks(20, 1)).encode());
    driver.mem.poke(GOOD_RESPONSE, &UNTOUCHED);
    // Descriptors behind those that the malformed requests write by hand.
    driver.queues[0].skip_to_descriptor(10);
    driver.offer(0, &[readable(GOOD_REQUEST, 24), writable(GOOD_RESPONSE, 10)])
}

fn used(id: u32, len: u32) -> Vec<UsedElement> {
    vec![UsedElement { id, len }]
}

/// The chain was returned with nothing in it.
fn assert_returned_empty(verdict: &Verdict, fault: GuestFault) {
    assert_eq!(verdict.used, used(0, 0));
    assert_eq!(verdict.response, UNTOUCHED);
    assert_eq!(verdict.fault, Some(fault));
}

/// The chain was answered with ERROR.
fn assert_answered_error(verdict: &Verdict, fault: Option<GuestFault>) {
    assert_eq!(verdict.used, used(0, 10));
    assert_eq!(verdict.response, ERROR);
    assert_eq!(verdict.fault, fault);
}

#[test]
fn a_request_that_is_too_short_is_error() {
    for len in [0, 1, 2, 8, 23] {
        let verdict = verdict_of(|driver| {
            driver.offer(0, &[readable(REQUEST, len), writable(RESPONSE, 10)]);
        });
        let fault = GuestFault::ShortChain {
            queue: 0,
            len: len.into(),
            needed: 24,
        };
        assert_answered_error(&verdict, Some(fault));
    }
}

#[test]
fn a_chain_without_a_request_is_error() {
    let verdict = verdict_of(|driver| {
        driver.offer(0, &[writable(RESPONSE, 10)]);
    });
    assert_answered_error(
        &verdict,
        Some(GuestFault::ShortChain {
            queue: 0,
            len: 0,
            needed: 24,
        }),
    );
}

#[test]
fn a_chain_without_room_for_the_response_is_returned_undone() {
    for len in [0, 1, 9] {
        let verdict = verdict_of(|driver| {
            driver.offer(0, &[readable(REQUEST, 24), writable(RESPONSE, len)]);
        });
        assert_returned_empty(
            &verdict,
            GuestFault::ShortChain {
                queue: 0,
                len: len.into(),
                needed: 10,
            },
        );
    }
    let verdict = verdict_of(|driver| {
        driver.offer(0, &[readable(REQUEST, 24)]);
    });
    assert_returned_empty(
        &verdict,
        GuestFault::ShortChain {
            queue: 0,
            len: 0,
            needed: 10,
        },
    );
}

#[test]
fn a_request_in_a_writable_buffer_is_error() {
    let verdict = verdict_of(|driver| {
        driver
            .mem
            .poke(RESPONSE + 0x100, &Request::Plug(blocks(0, 4)).encode());
        driver.offer(0, &[writable(RESPONSE, 24), writable(RESPONSE + 0x100, 24)]);
    });
    assert_answered_error(
        &verdict,
        Some(GuestFault::ShortChain {
            queue: 0,
            len: 0,
            needed: 24,
        }),
    );
}

#[test]
fn a_response_before_the_request_is_returned_undone() {
    let verdict = verdict_of(|driver| {
        driver.offer(0, &[writable(RESPONSE, 10), readable(REQUEST, 24)]);
    });
    assert_returned_empty(&verdict, GuestFault::WrongDirection { queue: 0 });
}

#[test]
fn an_unknown_type_is_error() {
    for raw in [4u16, 0x100, 0xffff] {
        let verdict = verdict_of(|driver| {
            driver.mem.poke(REQUEST, &raw.to_le_bytes());
            driver.offer(0, &[readable(REQUEST, 24), writable(RESPONSE, 10)]);
        });
        assert_answered_error(&verdict, None);
    }
}

#[test]
fn buffers_outside_of_memory_are_the_guests_fault() {
    for gpa in [
        0,
        PatchyMemory::END,
        PatchyMemory::END - 23,
        1 << 40,
        u64::MAX,
        u64::MAX - 23,
    ] {
        let verdict = verdict_of(|driver| {
            driver.offer(0, &[readable(gpa, 24), writable(RESPONSE, 10)]);
        });
        assert_eq!(
            (verdict.used, verdict.response),
            (used(0, 10), ERROR),
            "request at {gpa:#x}"
        );
        assert!(matches!(
            verdict.fault,
            Some(GuestFault::BufferUnreachable { queue: 0, .. })
        ));
    }
    for gpa in [
        0,
        PatchyMemory::END,
        PatchyMemory::END - 9,
        1 << 40,
        u64::MAX,
        u64::MAX - 9,
    ] {
        let verdict = verdict_of(|driver| {
            driver.offer(0, &[readable(REQUEST, 24), writable(gpa, 10)]);
        });
        assert_eq!(
            (verdict.used, verdict.response),
            (used(0, 0), UNTOUCHED),
            "response at {gpa:#x}"
        );
        assert!(matches!(
            verdict.fault,
            Some(GuestFault::BufferUnreachable { queue: 0, .. })
        ));
    }
}

#[test]
fn a_chain_that_loops_is_returned_undone() {
    let verdict = verdict_of(|driver| {
        let descriptor = |next| Descriptor {
            addr: REQUEST,
            len: 24,
            flags: DESC_F_NEXT,
            next,
        };
        driver.write_descriptor(0, 0, descriptor(1));
        driver.write_descriptor(0, 1, descriptor(0));
        driver.make_available(0, 0);
    });
    assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
}

#[test]
fn a_chain_that_loops_behind_a_good_request_is_returned_undone() {
    let verdict = verdict_of(|driver| {
        driver.write_descriptor(
            0,
            0,
            Descriptor {
                addr: REQUEST,
                len: 24,
                flags: DESC_F_NEXT,
                next: 1,
            },
        );
        let response = Descriptor {
            addr: RESPONSE,
            len: 10,
            flags: DESC_F_NEXT | DESC_F_WRITE,
            next: 1,
        };
        driver.write_descriptor(0, 1, response);
        driver.make_available(0, 0);
    });
    assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
}

#[test]
fn a_chain_that_leaves_the_table_is_returned_undone() {
    for next in [16, 17, u16::MAX] {
        let verdict = verdict_of(|driver| {
            driver.write_descriptor(
                0,
                0,
                Descriptor {
                    addr: REQUEST,
                    len: 24,
                    flags: DESC_F_NEXT,
                    next,
                },
            );
            driver.make_available(0, 0);
        });
        assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
    }
}

#[test]
fn a_chain_of_more_than_4_gib_is_returned_undone() {
    let verdict = verdict_of(|driver| {
        driver.offer(
            0,
            &[
                readable(REQUEST, u32::MAX),
                readable(REQUEST, u32::MAX),
                writable(RESPONSE, 10),
            ],
        );
    });
    assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
}

#[test]
fn a_head_beyond_the_table_is_skipped() {
    for head in [16, 17, u16::MAX] {
        let verdict = verdict_of(|driver| driver.make_available(0, head));
        assert_eq!(verdict.used, []);
        assert_eq!(
            verdict.fault,
            Some(GuestFault::HeadIndex {
                queue: 0,
                index: head
            })
        );
    }
}

#[test]
fn broken_indirect_tables_are_returned_undone() {
    let table = PatchyMemory::BASE + 0xc000;
    let unreachable = PatchyMemory::END;
    for (addr, len) in [
        (table, 15),
        (table, 0),
        (table, 0xffff_fff0),
        (unreachable, 32),
        (u64::MAX - 15, 32),
    ] {
        let verdict = verdict_of(|driver| {
            driver.write_descriptor(
                0,
                0,
                Descriptor {
                    addr,
                    len,
                    flags: DESC_F_INDIRECT,
                    next: 0,
                },
            );
            driver.make_available(0, 0);
        });
        assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
    }
}

#[test]
fn an_indirect_table_in_an_indirect_table_is_returned_undone() {
    let table = PatchyMemory::BASE + 0xc000;
    let verdict = verdict_of(|driver| {
        let indirect = Descriptor {
            addr: table,
            len: 32,
            flags: DESC_F_INDIRECT,
            next: 0,
        };
        driver.mem.poke(table, &indirect.encode());
        driver.write_descriptor(0, 0, indirect);
        driver.make_available(0, 0);
    });
    assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
}

#[test]
fn an_indirect_table_longer_than_the_queue_is_returned_undone() {
    let table = PatchyMemory::BASE + 0xc000;
    let verdict = verdict_of(|driver| {
        for next in 1..=17u16 {
            let flags = if next < 17 { DESC_F_NEXT } else { 0 };
            let descriptor = Descriptor {
                addr: REQUEST,
                len: 24,
                flags,
                next,
            };
            driver
                .mem
                .poke(table + u64::from(next - 1) * 16, &descriptor.encode());
        }
        driver.write_descriptor(
            0,
            0,
            Descriptor {
                addr: table,
                len: 17 * 16,
                flags: DESC_F_INDIRECT,
                next: 0,
            },
        );
        driver.make_available(0, 0);
    });
    assert_returned_empty(&verdict, GuestFault::BrokenChain { queue: 0 });
}

#[test]
fn overlapping_buffers_are_read_before_they_are_written() {
    let (mut driver, _) = mem_driver(8);
    driver.mem.poke(REQUEST, &Request::Plug(blocks(0, 4)).encode());
    driver.offer(0, &[readable(REQUEST, 24), writable(REQUEST + 4, 10)]);
    let good = offer_good(&mut driver);
    let _ = driver.kick(0);
    assert_eq!(
        driver.used(0),
        [
            UsedElement { id: 0, len: 10 },
            UsedElement {
                id: good.into(),
                len: 10
            }
        ]
    );
    assert_eq!(driver.mem.peek(REQUEST + 4), [0; 10]);
    assert_eq!(driver.device().plugged_size(), 5 * BLOCK);
}

#[test]
fn a_request_cut_into_single_bytes_is_a_good_request() {
    let (mut driver, _) = mem_driver(8);
    driver.mem.poke(REQUEST, &Request::Plug(blocks(0, 4)).encode());
    let mut chain = cut(REQUEST, &[1, 0, 2, 5, 8, 1, 7], readable);
    chain.extend(cut(RESPONSE, &[3, 0, 1, 6, 100], writable));
    driver.offer(0, &chain);
    let _ = driver.kick(0);
    assert_eq!(driver.response().response_type(), ResponseType::Ack);
    assert_eq!(driver.device().plugged_size(), 4 * BLOCK);
}

#[test]
fn a_request_in_an_indirect_table_is_a_good_request() {
    let (mut driver, _) = mem_driver(8);
    let table = PatchyMemory::BASE + 0xc000;
    driver.mem.poke(REQUEST, &Request::Plug(blocks(0, 4)).encode());
    let request = Descriptor {
        addr: REQUEST,
        len: 24,
        flags: DESC_F_NEXT,
        next: 1,
    };
    let response = Descriptor {
        addr: RESPONSE,
        len: 10,
        flags: DESC_F_WRITE,
        next: 0,
    };
    driver.mem.poke(table, &request.encode());
    driver.mem.poke(table + 16, &response.encode());
    driver.write_descriptor(
        0,
        0,
        Descriptor {
            addr: table,
            len: 32,
            flags: DESC_F_INDIRECT,
            next: 0,
        },
    );
    driver.make_available(0, 0);
    let _ = driver.kick(0);
    assert_eq!(driver.response().response_type(), ResponseType::Ack);
}
