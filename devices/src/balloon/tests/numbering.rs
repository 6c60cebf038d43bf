//! Drivers that have not negotiated every queue, in both ways of counting.

use virtio_wire::mmio::Register;

use super::*;

/// A driver that negotiates `features` and sets up just the queues that `numbering` gives it.
fn driver_with(features: u64, numbering: Numbering) -> (BalloonDriver, TestBackend) {
    let backend = TestBackend::default();
    let mut driver = Driver::new(Balloon::new(EVERYTHING, 0, backend.clone()));
    driver.negotiate(features | virtio_wire::feature::VERSION_1);
    for queue in Queue::ALL {
        if let Some(index) = numbering.index_of(queue, features) {
            let _ = driver.set_up_queue(index.into());
        }
    }
    let _ = driver.write(Register::Status, 15);
    (driver, backend)
}

#[test]
fn every_queue_is_found_with_any_features_and_either_way_of_counting() {
    for optional in 0..8u64 {
        let bits = [
            feature::STATS_VQ,
            feature::FREE_PAGE_HINT,
            feature::PAGE_REPORTING,
        ];
        let features = (0..3)
            .filter(|bit| optional >> bit & 1 == 1)
            .fold(0, |features, bit| features | bits[bit]);
        for numbering in [Numbering::Fixed, Numbering::Dense] {
            let (mut driver, host) = driver_with(features, numbering);
            for queue in Queue::ALL {
                let Some(index) = numbering.index_of(queue, features) else {
                    continue;
                };
                assert_eq!(driver.balloon().role(index), Some(queue));
                if queue == Queue::Reporting {
                    driver.offer(index, &[writable(bytes_of(20..21).start, 4096)]);
                    let _ = driver.kick(index);
                    assert_eq!(host.take(), [bytes_of(20..21)]);
                }
            }
        }
    }
}

#[test]
fn a_queue_that_was_not_negotiated_does_nothing() {
    let (mut driver, host) = balloon_driver(0);
    driver.initialise(virtio_wire::feature::VERSION_1 | feature::STATS_VQ);
    driver.send_buffers(Queue::Reporting, &[bytes_of(20..21)]);
    driver.send_buffers(Queue::FreePage, &[bytes_of(20..21)]);
    assert_eq!(host.take(), []);
    assert_eq!(driver.transport.guest_faults(), 0);
}

#[test]
fn only_what_the_operator_allows_is_offered() {
    let offered = |options| Balloon::new(options, 0, TestBackend::default()).features();
    let always = feature::MUST_TELL_HOST | feature::STATS_VQ | feature::PAGE_POISON;
    let none = BalloonOptions::default();
    assert_eq!(offered(none), always);
    for (options, bit) in [
        (
            BalloonOptions {
                deflate_on_oom: true,
                ..none
            },
            feature::DEFLATE_ON_OOM,
        ),
        (
            BalloonOptions {
                hinting: true,
                ..none
            },
            feature::FREE_PAGE_HINT,
        ),
        (
            BalloonOptions {
                reporting: true,
                ..none
            },
            feature::PAGE_REPORTING,
        ),
    ] {
        assert_eq!(offered(options), always | bit);
    }
}
