//! ACK, NACK, BUSY and ERROR exactly where section 5.15 of virtio 1.3 puts them, and what follows from each.

use virtio_wire::feature as common;
use virtio_wire::mem::BlockState;
use virtio_wire::mmio::{INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER, Register};

use super::*;
use crate::mmio::{Lifecycle, QueueSet};

#[test]
fn a_plug_within_the_requested_size_is_acknowledged_and_shows_in_the_configuration() {
    let (mut driver, backend) = mem_driver(8);
    assert_eq!(driver.ask_type(Request::Plug(blocks(2, 3))), ResponseType::Ack);
    assert_eq!(driver.config().plugged_size, 3 * BLOCK);
    assert_eq!(backend.0.borrow().plugged, [run(2, 3)]);
}

#[test]
fn an_unplug_of_plugged_blocks_is_acknowledged_and_shows_in_the_configuration() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(0, 8)));
    assert_eq!(driver.ask_type(Request::Unplug(blocks(1, 2))), ResponseType::Ack);
    assert_eq!(driver.config().plugged_size, 6 * BLOCK);
    assert_eq!(backend.0.borrow().unplugged, [run(1, 2)]);
}

#[test]
fn a_plug_beyond_the_requested_size_is_nack_and_changes_nothing() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(0, 6)));
    assert_eq!(driver.ask_type(Request::Plug(blocks(6, 3))), ResponseType::Nack);
    assert_eq!(driver.ask_type(Request::Plug(blocks(6, 2))), ResponseType::Ack);
    assert_eq!(driver.ask_type(Request::Plug(blocks(8, 1))), ResponseType::Nack);
    assert_eq!(backend.0.borrow().plugged, [run(0, 6), run(6, 2)]);
}

#[test]
fn an_unaligned_address_is_error_for_every_request_with_blocks() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(0, 4)));
    for addr in [REGION + 1, REGION + BLOCK / 2, REGION + BLOCK - 1] {
        for request in [Request::Plug, Request::Unplug, Request::State] {
            assert_eq!(
                driver.ask_type(request(BlockRange { addr, nb_blocks: 1 })),
                ResponseType::Error
            );
            assert_eq!(
                driver.device().last_refusal(),
                Some(RequestError::Unaligned { addr })
            );
        }
    }
    assert_eq!(backend.0.borrow().plugged, [run(0, 4)]);
    assert_eq!(backend.0.borrow().unplugged, []);
}

#[test]
fn zero_blocks_are_error_for_every_request_with_blocks() {
    let (mut driver, _) = mem_driver(8);
    for request in [Request::Plug, Request::Unplug, Request::State] {
        assert_eq!(driver.ask_type(request(blocks(0, 0))), ResponseType::Error);
        assert_eq!(driver.device().last_refusal(), Some(RequestError::NoBlocks));
    }
}

#[test]
fn blocks_outside_the_usable_region_are_error_for_every_request_with_blocks() {
    let (mut driver, _) = mem_driver(NR_BLOCKS);
    let below = BlockRange {
        addr: REGION - BLOCK,
        nb_blocks: 1,
    };
    let zero = BlockRange {
        addr: 0,
        nb_blocks: 1,
    };
    let top = BlockRange {
        addr: 0u64.wrapping_sub(BLOCK),
        nb_blocks: u16::MAX,
    };
    let outside = [
        below,
        zero,
        top,
        blocks(NR_BLOCKS, 1),
        blocks(NR_BLOCKS - 1, 2),
        blocks(0, 65),
        blocks(1, u16::MAX),
    ];
    for range in outside {
        for request in [Request::Plug, Request::Unplug, Request::State] {
            assert_eq!(driver.ask_type(request(range)), ResponseType::Error, "{range:?}");
        }
    }
    assert_eq!(driver.ask_type(Request::Plug(blocks(0, 64))), ResponseType::Ack);
}

#[test]
fn nothing_is_usable_while_nothing_is_requested() {
    let (mut driver, _) = mem_driver(0);
    assert_eq!(driver.config().usable_region_size, 0);
    assert_eq!(driver.ask_type(Request::Plug(blocks(0, 1))), ResponseType::Error);
    assert_eq!(driver.ask_type(Request::State(blocks(0, 1))), ResponseType::Error);
}

#[test]
fn a_plug_of_a_plugged_block_is_error_even_if_it_is_also_too_much() {
    let (mut driver, _) = mem_driver(4);
    driver.ask(Request::Plug(blocks(0, 4)));
    assert_eq!(driver.ask_type(Request::Plug(blocks(3, 2))), ResponseType::Error);
    assert_eq!(driver.device().last_refusal(), Some(RequestError::AlreadyPlugged));
}

#[test]
fn an_unplug_of_an_unplugged_block_is_error() {
    let (mut driver, _) = mem_driver(8);
    driver.ask(Request::Plug(blocks(0, 4)));
    for range in [blocks(3, 2), blocks(4, 1)] {
        assert_eq!(driver.ask_type(Request::Unplug(range)), ResponseType::Error);
        assert_eq!(
            driver.device().last_refusal(),
            Some(RequestError::AlreadyUnplugged)
        );
    }
}

#[test]
fn the_state_of_blocks_is_plugged_unplugged_or_mixed() {
    let (mut driver, _) = mem_driver(8);
    driver.ask(Request::Plug(blocks(4, 4)));
    for (range, state) in [
        (blocks(4, 4), BlockState::Plugged),
        (blocks(0, 4), BlockState::Unplugged),
        (blocks(3, 2), BlockState::Mixed),
        (blocks(7, 2), BlockState::Mixed),
        (blocks(0, 64), BlockState::Mixed),
    ] {
        let response = driver.ask(Request::State(range));
        assert_eq!(
            (response.response_type(), response.block_state()),
            (ResponseType::Ack, Ok(state)),
            "{range:?}"
        );
    }
}

#[test]
fn a_busy_backend_is_busy_and_nothing_changes() {
    let (mut driver, backend) = mem_driver(8);
    driver.ask(Request::Plug(blocks(0, 4)));
    backend.0.borrow_mut().outcomes = vec![Some(BackendError::Busy), Some(BackendError::Busy)];
    assert_eq!(driver.ask_type(Request::Plug(blocks(4, 4))), ResponseType::Busy);
    assert_eq!(driver.ask_type(Request::Unplug(blocks(0, 4))), ResponseType::Busy);
    assert_eq!(driver.config().plugged_size, 4 * BLOCK);
    assert_eq!(driver.ask_type(Request::Plug(blocks(4, 4))), ResponseType::Ack);
}

#[test]
fn unplug_all_joins_neighbours_and_leaves_nothing_plugged() {
    let (mut driver, backend) = mem_driver(32);
    for range in [blocks(0, 2), blocks(2, 2), blocks(10, 1)] {
        driver.ask(Request::Plug(range));
    }
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Ack);
    assert_eq!(driver.config().plugged_size, 0);
    assert_eq!(backend.0.borrow().unplugged, [run(0, 4), run(10, 1)]);
}

#[test]
fn unplug_all_that_meets_a_busy_backend_can_be_repeated() {
    let (mut driver, backend) = mem_driver(32);
    driver.ask(Request::Plug(blocks(0, 2)));
    driver.ask(Request::Plug(blocks(10, 1)));
    backend.0.borrow_mut().outcomes = vec![None, Some(BackendError::Busy)];
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Busy);
    assert_eq!(driver.config().plugged_size, BLOCK);
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Ack);
    assert_eq!(driver.config().plugged_size, 0);
}

#[test]
fn the_usable_region_grows_with_the_request_and_shrinks_only_on_unplug_all() {
    let (mut driver, _) = mem_driver(0);
    let _ = driver.resize(8);
    assert_eq!(driver.config().usable_region_size, NR_BLOCKS * BLOCK);
    let _ = driver.resize(0);
    assert_eq!(driver.config().usable_region_size, NR_BLOCKS * BLOCK);
    assert_eq!(driver.ask_type(Request::UnplugAll), ResponseType::Ack);
    assert_eq!(driver.config().usable_region_size, 0);
}

#[test]
fn a_resize_changes_the_generation_and_interrupts_even_if_the_size_is_the_same() {
    let (mut driver, _) = mem_driver(8);
    for size in [16, 4, 4] {
        let generation = driver.read(Register::ConfigGeneration);
        let effects = driver.resize(size);
        assert_eq!(
            effects,
            Effects {
                interrupt: true,
                config_changed: true,
                ..Effects::NONE
            }
        );
        assert_ne!(driver.read(Register::ConfigGeneration), generation);
        assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_CONFIG_CHANGE);
        assert_eq!(driver.config().requested_size, size * BLOCK);
        let _ = driver.write(Register::InterruptAck, INTERRUPT_CONFIG_CHANGE);
    }
}

#[test]
fn a_resize_that_cannot_be_is_refused_without_effect() {
    let (mut driver, _) = mem_driver(8);
    let generation = driver.read(Register::ConfigGeneration);
    let unaligned = ResizeError::Unaligned {
        requested_size: BLOCK + 1,
        block_size: BLOCK,
    };
    assert_eq!(driver.transport.set_requested_size(BLOCK + 1), Err(unaligned));
    let requested_size = (NR_BLOCKS + 1) * BLOCK;
    let beyond = ResizeError::BeyondRegion {
        requested_size,
        region_size: NR_BLOCKS * BLOCK,
    };
    assert_eq!(driver.transport.set_requested_size(requested_size), Err(beyond));
    assert_eq!(driver.config().requested_size, 8 * BLOCK);
    assert_eq!(driver.read(Register::ConfigGeneration), generation);
    assert_eq!(driver.read(Register::InterruptStatus), 0);
}

#[test]
fn a_resize_before_the_driver_is_ready_is_told_when_it_is() {
    let (mut driver, _) = mem_driver(8);
    driver.negotiate(common::VERSION_1 | feature::UNPLUGGED_INACCESSIBLE);
    assert!(!driver.resize(16).interrupt);
    assert_eq!(driver.read(Register::InterruptStatus), 0);
    let effects = driver.write(Register::Status, 15);
    assert_eq!(
        effects,
        Effects {
            interrupt: true,
            notified: QueueSet::one(0),
            lifecycle: Some(Lifecycle::Activated),
            ..Effects::NONE
        }
    );
    assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_CONFIG_CHANGE);
}

#[test]
fn a_plug_changes_the_generation_without_a_configuration_interrupt() {
    let (mut driver, _) = mem_driver(8);
    let generation = driver.read(Register::ConfigGeneration);
    driver.send(Request::Plug(blocks(0, 1)));
    assert!(driver.kick(0).config_changed);
    assert_ne!(driver.read(Register::ConfigGeneration), generation);
    assert_eq!(driver.read(Register::InterruptStatus), INTERRUPT_USED_BUFFER);
}

#[test]
fn the_node_is_offered_only_if_there_is_one() {
    let spec = RegionSpec {
        addr: REGION,
        region_size: BLOCK,
        block_size: BLOCK,
        requested_size: 0,
        node_id: Some(3),
        unplugged: UnpluggedMemory::Inaccessible,
    };
    let device = MemDevice::new(&spec, ScriptedBackend::default()).unwrap();
    assert_eq!(device.features() & feature::ACPI_PXM, feature::ACPI_PXM);
    assert_eq!(device.config().node_id, 3);
    let without = MemDevice::new(
        &RegionSpec {
            node_id: None,
            ..spec
        },
        ScriptedBackend::default(),
    )
    .unwrap();
    assert_eq!(without.features() & feature::ACPI_PXM, 0);
}

#[test]
fn the_driver_cannot_write_the_configuration() {
    let (mut driver, _) = mem_driver(8);
    let before = driver.config();
    for offset in 0..64 {
        let _ = driver.transport.write(&driver.mem, 0x100 + offset, &[0xff; 4]);
    }
    assert_eq!(driver.config(), before);
}

#[test]
fn a_host_fault_goes_to_the_host_and_is_no_fault_of_the_guest() {
    let (mut driver, backend) = mem_driver(8);
    backend.0.borrow_mut().outcomes = vec![fault()];
    driver.send(Request::Plug(blocks(3, 2)));
    let error = driver.transport.process_queue(&driver.mem, 0).unwrap_err();
    assert_eq!(error.to_string(), "cannot plug 2 memory blocks from block 3");
    assert_eq!(driver.device().plugged_size(), 0);
    assert_eq!(driver.transport.guest_faults(), 0);
}

#[test]
fn requests_and_responses_are_counted() {
    let (mut driver, backend) = mem_driver(4);
    driver.ask(Request::Plug(blocks(0, 4)));
    driver.ask(Request::Plug(blocks(4, 1)));
    driver.ask(Request::Unplug(blocks(9, 1)));
    backend.0.borrow_mut().outcomes = vec![Some(BackendError::Busy)];
    driver.ask(Request::UnplugAll);
    driver.ask(Request::State(blocks(0, 1)));
    let expected = Counters {
        plug_requests: 2,
        unplug_requests: 1,
        unplug_all_requests: 1,
        state_requests: 1,
        unknown_requests: 0,
        acks: 2,
        nacks: 1,
        busies: 1,
        errors: 1,
    };
    assert_eq!(driver.device().counters(), expected);
    assert_eq!(driver.transport.guest_faults(), 0);
}
