//! Reasons, and those who wait.

use super::*;
use crate::machine::Way;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const STANDING: Standing = Standing {
    balloon: None,
    requested_size: 100,
    plugged_size: 40,
    driver_ready: true,
    held: false,
    requests: 9,
    refusals: Refusals {
        nacks: 5,
        busy: 0,
        errors: 0,
    },
};

fn reason(state: &State, standing: Standing) -> IncompleteReason {
    state.reason(512, &standing, Instant::now())
}

/// Nothing has moved for so long, and things stood so when the size was asked for.
fn quiet_since(seconds: u64, before: Standing) -> State {
    State {
        last_move: Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap(),
        before,
        told: false,
        asking: 0,
        timer: TimerFd::new().unwrap(),
        ended: false,
    }
}

#[test]
fn the_most_telling_reason_is_given() {
    let none = Standing::default();
    let nothing_plugged = Standing {
        plugged_size: 0,
        ..none
    };
    assert_eq!(
        reason(&quiet_since(0, nothing_plugged), STANDING),
        IncompleteReason::TimedOut
    );
    let refused = |moved_bytes| IncompleteReason::Refused {
        nacks: 5,
        busy: 0,
        errors: 0,
        shortfall: Shortfall {
            way: Way::Take,
            moved_bytes,
            missing_bytes: 60,
        },
    };
    assert_eq!(reason(&quiet_since(9, none), STANDING), refused(40));
    // Nothing has moved: what was refused counts at once.
    let as_far = Standing {
        plugged_size: STANDING.plugged_size,
        ..none
    };
    assert_eq!(reason(&quiet_since(0, as_far), STANDING), refused(0));
    // Refusals from before the resize explain nothing.
    let refused_before = Standing {
        requests: 8,
        ..STANDING
    };
    assert_eq!(
        reason(&quiet_since(9, refused_before), STANDING),
        IncompleteReason::Stalled {
            quiet_seconds: 9,
            shortfall: Shortfall {
                way: Way::Take,
                moved_bytes: 0,
                missing_bytes: 60
            }
        }
    );
    assert_eq!(
        reason(&quiet_since(9, STANDING), STANDING),
        IncompleteReason::NoRequest {
            quiet_seconds: 9,
            shortfall: Shortfall {
                way: Way::Take,
                moved_bytes: 0,
                missing_bytes: 60
            }
        }
    );
    let nobody = Standing {
        driver_ready: false,
        ..STANDING
    };
    assert_eq!(
        reason(&quiet_since(0, none), nobody),
        IncompleteReason::DriverNotReady
    );
    let held = Standing { held: true, ..nobody };
    assert_eq!(reason(&quiet_since(9, none), held), IncompleteReason::Held);
    let state = State {
        ended: true,
        ..quiet_since(0, none)
    };
    assert_eq!(reason(&state, held), IncompleteReason::Ended);
}

#[test]
fn a_balloon_without_room_to_give_does_not_stand_in_for_a_driver_of_blocks() {
    let balloon = |held, wanted, driver_ready| {
        let target = Some(612);
        Some(BalloonStanding {
            held,
            wanted,
            target,
            driver_ready,
        })
    };
    let growing = |balloon| Standing {
        driver_ready: false,
        balloon,
        ..STANDING
    };
    let why = |standing| reason(&quiet_since(9, standing), standing).code();
    assert_eq!(why(growing(balloon(0, 0, true))), "driver-absent");
    assert_eq!(why(growing(balloon(0, 0, false))), "driver-absent");
    assert_eq!(why(growing(balloon(60, 0, true))), "no-request");
    let done_by_blocks = Standing {
        plugged_size: 100,
        balloon: balloon(0, 60, false),
        ..STANDING
    };
    let shrinks = Standing {
        balloon: done_by_blocks.balloon.map(|balloon| BalloonStanding {
            target: Some(552),
            ..balloon
        }),
        ..done_by_blocks
    };
    assert_eq!(why(shrinks), "balloon-driver-absent");
}

#[test]
fn a_stall_says_what_was_moved_and_what_is_missing_either_way() {
    let mib = 1 << 20;
    let quiet = |before: u64, now: u64, requested: u64| {
        let standing = |plugged_size| Standing {
            plugged_size,
            ..STANDING
        };
        let before = Standing {
            requests: 8,
            ..standing(before)
        };
        let now = Standing {
            requested_size: requested,
            ..standing(now)
        };
        reason(&quiet_since(59, before), now).to_string()
    };
    assert_eq!(
        quiet(512 * mib, 46 * mib, 0),
        "stalled with 46 MiB still to be given back and 466 MiB given back: nothing has moved for 59 s"
    );
    assert_eq!(
        quiet(0, 46 * mib, 64 * mib),
        "stalled with 18 MiB still to be taken and 46 MiB taken: nothing has moved for 59 s"
    );
}

#[test]
fn that_the_guest_is_there_is_said_once_for_each_request() {
    let progress = ResizeProgress::new().unwrap();
    let there = Standing {
        plugged_size: 100,
        ..STANDING
    };
    for _ in 0..2 {
        progress.requested(&STANDING);
        assert!(!progress.moved(512, &STANDING));
        assert!(progress.moved(512, &there));
        assert!(!progress.moved(512, &there));
    }
}

#[test]
fn only_a_guest_that_is_quiet_and_not_there_has_stalled() {
    let progress = ResizeProgress::new().unwrap();
    progress.requested(&Standing::default());
    assert_eq!(progress.stalled(512, &STANDING), None, "it was asked just now");
    progress.lock().last_move -= QUIET;
    assert!(matches!(
        progress.stalled(512, &STANDING),
        Some(IncompleteReason::Refused { nacks: 5, .. })
    ));
    let there = Standing {
        plugged_size: 100,
        ..STANDING
    };
    assert_eq!(progress.stalled(512, &there), None);
}

#[test]
fn a_waiter_is_woken_by_the_last_block() {
    let progress = Arc::new(ResizeProgress::new().unwrap());
    let plugged = Arc::new(AtomicU64::new(40));
    let waiter = {
        let (progress, plugged) = (Arc::clone(&progress), Arc::clone(&plugged));
        std::thread::spawn(move || {
            let look = || Standing {
                plugged_size: plugged.load(Ordering::Acquire),
                ..STANDING
            };
            progress.wait(512, Instant::now() + Duration::from_secs(60), look)
        })
    };
    for size in [60, 80, 100] {
        plugged.store(size, Ordering::Release);
        progress.moved(512, &STANDING);
    }
    assert_eq!(waiter.join().unwrap(), ResizeOutcome::Done { total_bytes: 612 });
}

#[test]
fn a_waiter_is_told_how_far_it_got() {
    let outcome = ResizeProgress::new()
        .unwrap()
        .wait(512, Instant::now(), || STANDING);
    assert!(matches!(
        outcome,
        ResizeOutcome::Incomplete {
            reached_bytes: 552,
            target_bytes: 612,
            ..
        }
    ));
}

#[test]
fn what_is_reached_while_it_is_being_asked_for_is_told_when_that_is_known() {
    let progress = ResizeProgress::new().unwrap();
    let there = Standing::default();
    progress.asking();
    assert!(
        !progress.moved(0, &there),
        "nobody knows yet that it was asked for"
    );
    progress.requested(&there);
    progress.asked();
    assert!(progress.moved(0, &there));
    assert!(!progress.moved(0, &there), "once");
}
