//! What goes over the control socket is in the package's README, by name.

use serde_json::Value;

use crate::control::api;
use crate::control::rate::{RateLimiter, TokenBucket};
use crate::control::report::{
    BalloonReport, DiskReport, GuestRefusal, GuestStatistics, NetReport, NodeReport, PassReport,
    RegionReport, ResizeReport, ResizeState, VmStatus, VsockReport,
};
use crate::journal::EventKind;
use crate::machine::{IncompleteReason, Shortfall, Way};

const README: &str = include_str!("../../../README.md");

#[track_caller]
fn assert_documented(name: &str) {
    assert!(README.contains(&format!("`{name}`")), "the README names {name}");
}

/// Every key of an object, and of what is in it.
fn keys(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            into.push(key.clone());
            keys(value, into);
        }),
        Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[test]
fn every_field_of_the_state_is_documented() {
    let status = VmStatus {
        regions: vec![RegionReport::default()],
        nodes: vec![NodeReport::default()],
        disks: vec![DiskReport {
            rate_limiter: RateLimiter {
                bandwidth: Some(TokenBucket::NONE),
                ops: Some(TokenBucket::NONE),
            },
            ..DiskReport::default()
        }],
        net: vec![NetReport::default()],
        vsock: Some(VsockReport::default()),
        balloon: Some(BalloonReport {
            statistics: Some(GuestStatistics::default()),
            ..BalloonReport::default()
        }),
        ..VmStatus::default()
    };
    let mut names = Vec::new();
    keys(&serde_json::to_value(status).expect("plain data"), &mut names);
    assert!(names.len() > 100, "{names:?}");
    names.iter().for_each(|name| assert_documented(name));
}

#[test]
fn every_field_of_the_result_of_a_resize_is_documented() {
    let report = ResizeReport {
        outcome: ResizeState::Reached,
        target_bytes: 0,
        reached_bytes: 0,
        elapsed_milliseconds: 0,
        cause: None,
        reason: None,
        guest_reason: None,
        guest_refusal: Some(GuestRefusal::default()),
        passes: Some(PassReport::default()),
    };
    let mut names = Vec::new();
    keys(&serde_json::to_value(report).expect("plain data"), &mut names);
    assert!(names.len() > 20, "{names:?}");
    names.iter().for_each(|name| assert_documented(name));
}

#[test]
fn every_request_event_outcome_and_cause_is_documented() {
    for path in [
        api::VM_PATH,
        api::BLOCKS_PATH,
        api::MEMORY_PATH,
        api::GUEST_PATH,
        api::BALLOON_PATH,
        api::LINK_PATH,
        api::RATE_PATH,
        api::PAUSE_PATH,
        api::RESUME_PATH,
        api::EVENTS_PATH,
        api::STOP_PATH,
    ] {
        let named = ["GET", "PUT", "POST"]
            .iter()
            .any(|method| README.contains(&format!("`{method} {path}")));
        assert!(named, "the README names {path}");
    }
    // Serde names all kinds when it meets one that it does not know.
    let unknown = serde_json::from_str::<EventKind>(r#"{"event":"?"}"#)
        .expect_err("no event")
        .to_string();
    let kinds: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
    assert!(kinds.len() >= 8, "{unknown}");
    kinds.into_iter().for_each(assert_documented);
    for outcome in [
        ResizeState::Requested,
        ResizeState::Reached,
        ResizeState::Incomplete,
        ResizeState::Superseded,
    ] {
        assert_documented(
            serde_json::to_value(outcome)
                .expect("plain data")
                .as_str()
                .expect("a word"),
        );
    }
    let shortfall = Shortfall {
        way: Way::Take,
        moved_bytes: 0,
        missing_bytes: 0,
    };
    let quiet_seconds = 0;
    for cause in [
        IncompleteReason::DriverNotReady,
        IncompleteReason::BalloonNotReady,
        IncompleteReason::Held,
        IncompleteReason::NoRequest {
            quiet_seconds,
            shortfall,
        },
        IncompleteReason::Refused {
            nacks: 0,
            busy: 0,
            errors: 0,
            shortfall,
        },
        IncompleteReason::Stalled {
            quiet_seconds,
            shortfall,
        },
        IncompleteReason::TimedOut,
        IncompleteReason::Ended,
    ] {
        assert_documented(cause.code());
    }
}
