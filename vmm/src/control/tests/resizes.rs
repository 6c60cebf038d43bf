//! Those who ask for a size, and those who wait for it.

use super::*;
use crate::control::api::ResizeRequest;
use crate::control::report::PassReport;

#[test]
fn a_resize_without_waiting_only_asks() {
    let fixture = Fixture::new();
    let report = fixture.client().resize(BOOT + 8 * MIB, None).expect("accepted");
    assert_eq!(report.outcome, ResizeState::Requested);
    assert_eq!(
        (report.reached_bytes, report.target_bytes),
        (BOOT, BOOT + 8 * MIB)
    );
    assert_eq!(fixture.machine.status().requested_size, 8 * MIB);
}

#[test]
fn a_waiting_resize_returns_as_soon_as_the_guest_is_there() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let waiter = std::thread::spawn(move || client.resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))));
    fixture.machine.until_waiting(1);
    fixture.machine.change(|state| state.plugged = 8 * MIB);
    let report = waiter.join().expect("no panic").expect("answered");
    assert_eq!(
        (report.outcome, report.reached_bytes),
        (ResizeState::Reached, BOOT + 8 * MIB)
    );
    assert_eq!((report.reason, report.guest_reason), (None, None));
}

#[test]
fn a_resize_that_is_not_reached_says_how_far_it_got_and_why() {
    let fixture = Fixture::new();
    fixture.machine.change(|state| {
        state.plugged = 2 * MIB;
        state.vmstat = Some("resize_stall_reason no-memory\nresize_refusal_reason no-memory\n".into());
    });
    let report = fixture
        .client()
        .resize(BOOT + 8 * MIB, Some(Duration::ZERO))
        .expect("answered");
    assert_eq!(
        (report.outcome, report.reached_bytes),
        (ResizeState::Incomplete, BOOT + 2 * MIB)
    );
    assert_eq!(
        report.reason.as_deref(),
        Some("stalled with 6 MiB still to be taken and 2 MiB taken: nothing has moved for 1 s")
    );
    assert_eq!(report.guest_reason.as_deref(), Some("no-memory"));
    assert_eq!(report.guest_refusal.expect("a refusal").reason, "no-memory");
}

#[test]
fn who_gives_up_when_the_time_is_up_has_the_guest_keep_what_it_has() {
    let fixture = Fixture::new();
    fixture.machine.change(|state| state.plugged = 2 * MIB);
    let mut request = ResizeRequest {
        total_bytes: BOOT + 8 * MIB,
        region: None,
        wait_seconds: Some(0),
        gives_up: true,
    };
    let report = fixture.client().ask_size(request).expect("answered");
    assert_eq!(
        (report.outcome, report.reached_bytes, report.target_bytes),
        (ResizeState::GivenUp, BOOT + 2 * MIB, BOOT + 8 * MIB)
    );
    assert_eq!(fixture.machine.status().requested_size, 2 * MIB);

    request.wait_seconds = None;
    let refused = refused(fixture.client().ask_size(request));
    assert_eq!(refused, "gives_up: only with wait_seconds");
}

#[test]
fn who_gives_up_and_goes_away_has_the_guest_keep_what_it_has() {
    let fixture = Fixture::new();
    let body = format!(
        "{{\"total_bytes\":{},\"wait_seconds\":600,\"gives_up\":true}}",
        BOOT + 8 * MIB
    );
    let length = body.len();
    let request =
        format!("PUT /ballast/v1/memory HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut stream = UnixStream::connect(fixture.registration.socket()).expect("listening");
    stream.write_all(request.as_bytes()).expect("sent");
    fixture.machine.until_waiting(1);
    assert_eq!(fixture.machine.status().requested_size, 8 * MIB);
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.machine.status().requested_size != 0 {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::yield_now();
    }
}

#[test]
fn how_blocks_left_is_said_when_some_did_and_the_guest_counts_them() {
    let fixture = Fixture::new();
    let counts = "resize_left_pass1 3\nresize_left_pass2 1\nresize_left_later 0\n";
    for (vmstat, passes) in [
        (Some(counts), Some((3, 1, 0))),
        (Some("resize_left_pass1 3\n"), None),
        (
            Some("resize_left_pass1 0\nresize_left_pass2 0\nresize_left_later 0\n"),
            None,
        ),
        (None, None),
    ] {
        let grown = fixture.client().resize(BOOT + 8 * MIB, None);
        assert_eq!(grown.expect("accepted").passes, None);
        fixture.machine.change(|state| {
            state.plugged = 8 * MIB;
            state.vmstat = vmstat.map(str::to_owned);
        });
        let again = fixture.client().resize(BOOT + 8 * MIB, Some(Duration::ZERO));
        let again = again.expect("answered");
        assert_eq!(
            (again.outcome, again.passes),
            (ResizeState::Reached, None),
            "none left"
        );
        let client = fixture.client();
        let waiter = std::thread::spawn(move || client.resize(BOOT, Some(Duration::from_secs(600))));
        fixture.machine.until_waiting(1);
        fixture.machine.change(|state| state.plugged = 0);
        let report = waiter.join().expect("no panic").expect("answered");
        assert_eq!(report.outcome, ResizeState::Reached);
        let passes = passes.map(|(first, second, later)| PassReport { first, second, later });
        assert_eq!(report.passes, passes, "{vmstat:?}");
    }
}

#[test]
fn a_guest_that_gives_no_reason_leaves_the_machine_s() {
    let fixture = Fixture::new();
    for vmstat in [
        None,
        Some("resize_stall_reason none\n".to_owned()),
        Some("pgfault 1".to_owned()),
    ] {
        fixture.machine.change(|state| state.vmstat = vmstat);
        let report = fixture
            .client()
            .resize(BOOT + 8 * MIB, Some(Duration::ZERO))
            .expect("answered");
        assert_eq!(
            (report.outcome, report.guest_reason),
            (ResizeState::Incomplete, None)
        );
    }
}

#[test]
fn a_waiter_is_told_when_somebody_else_asks_for_another_size() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let waiter = std::thread::spawn(move || client.resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))));
    fixture.machine.until_waiting(1);
    fixture.client().resize(BOOT + 4 * MIB, None).expect("accepted");
    let report = waiter.join().expect("no panic").expect("answered");
    assert_eq!(report.outcome, ResizeState::Superseded);
    assert_eq!(
        report.reason,
        Some(format!(
            "another resize asked for {} bytes meanwhile",
            BOOT + 4 * MIB
        ))
    );
}

#[test]
fn a_waiter_is_told_when_the_vm_ends() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let waiter = std::thread::spawn(move || client.resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))));
    fixture.machine.until_waiting(1);
    fixture.client().stop().expect("accepted");
    let report = waiter.join().expect("no panic").expect("answered");
    assert_eq!(report.reason.as_deref(), Some("the VM has ended"));
}

#[test]
fn clients_that_go_away_make_room_for_others() {
    let fixture = Fixture::new();
    let body = format!("{{\"total_bytes\":{},\"wait_seconds\":600}}", BOOT + 8 * MIB);
    let length = body.len();
    let request =
        format!("PUT /ballast/v1/memory HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    let streams: Vec<_> = (0..MAX_WAITERS)
        .map(|_| {
            let mut stream = UnixStream::connect(fixture.registration.socket()).expect("listening");
            stream.write_all(request.as_bytes()).expect("sent");
            stream
        })
        .collect();
    fixture.machine.until_waiting(MAX_WAITERS);
    drop(streams);
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = fixture.client().resize(BOOT + 8 * MIB, Some(Duration::ZERO)) {
        assert!(Instant::now() < deadline, "no room: {error}");
    }
}

#[test]
fn waiters_are_bounded_and_others_are_still_served() {
    let fixture = Fixture::new();
    let waiters: Vec<_> = (0..MAX_WAITERS)
        .map(|_| {
            let client = fixture.client();
            std::thread::spawn(move || client.resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))))
        })
        .collect();
    fixture.machine.until_waiting(MAX_WAITERS);
    let message = refused(
        fixture
            .client()
            .resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))),
    );
    assert_eq!(
        message,
        format!("{MAX_WAITERS} requests are waiting for the guest already")
    );
    assert_eq!(
        fixture.client().status().expect("answered").requested_size,
        8 * MIB
    );
    fixture.machine.change(|state| state.plugged = 8 * MIB);
    for waiter in waiters {
        let report = waiter.join().expect("no panic").expect("answered");
        assert_eq!(report.outcome, ResizeState::Reached);
    }
}
