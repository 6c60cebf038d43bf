//! Server and client together, through a real socket, with a machine that only pretends.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::api::{BODY_LIMIT, BalloonRequest, MAX_WAIT_SECONDS};
use super::client::{ClientError, ControlClient};
use super::handle::MachineHandle;
use super::registry::{Registration, RegistryError, RuntimeDir};
use super::report::{BalloonReport, BlockReport, ResizeState, VmState, VmStatus};
use super::routes::{MAX_READERS, MAX_WAITERS};
use super::server::{ApiServer, RunningServer};
use crate::journal::{EventKind, Events};
use crate::machine::{
    BalloonError, GuestCommandError, IncompleteReason, ResizeError, ResizeOutcome, ResizePlace, Shortfall,
    Way,
};
use crate::spec::{GIB, MIB, VmName};

const BOOT: u64 = 512 * MIB;
const REGION: u64 = GIB;

/// A machine whose guest does what the test says.
struct FakeMachine {
    state: Mutex<FakeState>,
    events: Events,
    changed: Condvar,
    stopped: AtomicBool,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct FakeState {
    requested: u64,
    plugged: u64,
    held: bool,
    vmstat: Option<String>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            events: Events::new(Instant::now()),
            changed: Condvar::default(),
            stopped: AtomicBool::default(),
            waiting: AtomicUsize::default(),
        }
    }
}

impl FakeMachine {
    fn change(&self, change: impl FnOnce(&mut FakeState)) {
        change(&mut self.state.lock().expect("no panic"));
        self.changed.notify_all();
    }

    /// Returns when exactly so many requests wait for the guest.
    fn until_waiting(&self, waiters: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.waiting.load(Ordering::SeqCst) != waiters {
            assert!(
                Instant::now() < deadline,
                "{} wait",
                self.waiting.load(Ordering::SeqCst)
            );
            std::thread::yield_now();
        }
    }
}

impl MachineHandle for FakeMachine {
    fn status(&self) -> VmStatus {
        let state = self.state.lock().expect("no panic");
        VmStatus {
            name: "fake".into(),
            pid: std::process::id(),
            state: VmState::Running,
            boot_memory: BOOT,
            region_size: REGION,
            block_size: 2 * MIB,
            requested_size: state.requested,
            plugged_size: state.plugged,
            total_requested: BOOT + state.requested,
            total_plugged: BOOT + state.plugged,
            guest_bytes: BOOT + state.plugged,
            ..VmStatus::default()
        }
    }

    /// The second region has nothing plugged.
    fn blocks(&self) -> Vec<BlockReport> {
        let plugged = self.state.lock().expect("no panic").plugged / (2 * MIB);
        let flags: Vec<bool> = (0..REGION / (2 * MIB)).map(|block| block < plugged).collect();
        vec![
            BlockReport::from_flags(4 * GIB, 2 * MIB, &flags),
            BlockReport::from_flags(8 * GIB, 4 * MIB, &[false; 3]),
        ]
    }

    fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError> {
        if let ResizePlace::Region(region) = place
            && region > 0
        {
            return Err(ResizeError::NoSuchRegion { region, regions: 1 });
        }
        if total_bytes > BOOT + REGION {
            return Err(ResizeError::BeyondRegion {
                total_bytes,
                limit: BOOT + REGION,
            });
        }
        self.change(|state| state.requested = total_bytes - BOOT);
        Ok(())
    }

    fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock().expect("no panic");
        let timeout = deadline.saturating_duration_since(Instant::now());
        let going_on =
            |state: &mut FakeState| state.plugged != state.requested && !self.stopped.load(Ordering::SeqCst);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, timeout, going_on)
            .expect("no panic");
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if state.plugged == state.requested {
            return ResizeOutcome::Done {
                total_bytes: BOOT + state.plugged,
            };
        }
        let ended = self.stopped.load(Ordering::SeqCst);
        ResizeOutcome::Incomplete {
            reached_bytes: BOOT + state.plugged,
            target_bytes: BOOT + state.requested,
            reason: if ended {
                IncompleteReason::Ended
            } else {
                IncompleteReason::Stalled {
                    quiet_seconds: 1,
                    shortfall: Shortfall {
                        way: Way::Take,
                        moved_bytes: state.plugged,
                        missing_bytes: state.requested.abs_diff(state.plugged),
                    },
                }
            },
            guest_reason: None,
        }
    }

    fn guest_command(&self, line: &str, _timeout: Duration) -> Result<String, GuestCommandError> {
        let vmstat = self.state.lock().expect("no panic").vmstat.clone();
        match line {
            "vmstat" => vmstat.ok_or(GuestCommandError::NotConnected),
            "say \"hi\"" => Ok("hi\nthere\n".into()),
            other => Err(GuestCommandError::Refused(format!("{other}: no such command"))),
        }
    }

    fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, BalloonError> {
        match order {
            BalloonRequest::StatisticsInterval { seconds } => Ok(BalloonReport {
                statistics_interval_seconds: seconds,
                ..BalloonReport::default()
            }),
            _ => Err(BalloonError::NoBalloon),
        }
    }

    fn pause(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().expect("no panic").held, true)
    }

    fn resume(&self) -> bool {
        std::mem::take(&mut self.state.lock().expect("no panic").held)
    }

    fn events(&self) -> Events {
        self.events.clone()
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// A served fake machine in a registry of its own.
struct Fixture {
    _directory: tempfile::TempDir,
    registry: RuntimeDir,
    registration: Registration,
    machine: Arc<FakeMachine>,
    server: Option<RunningServer>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let registry = RuntimeDir::at(directory.path().join("ballast"));
        let machine = Arc::new(FakeMachine::default());
        let server = ApiServer::new().expect("an event loop");
        let (registration, listener) = registry.register(&name("fake")).expect("free");
        let server = server
            .serve(listener, Arc::clone(&machine) as Arc<dyn MachineHandle>)
            .expect("a thread");
        Self {
            _directory: directory,
            registry,
            registration,
            machine,
            server: Some(server),
        }
    }

    fn client(&self) -> ControlClient {
        ControlClient::open_in(&self.registry, &name("fake")).expect("running")
    }

    /// Sends bytes as they are and reads the answer to its end.
    fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.registration.socket()).expect("listening");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The answer to one request with a body.
    fn request(&self, line: &str, body: &str) -> String {
        let length = body.len();
        self.raw(&format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shut_down();
        }
    }
}

fn name(name: &str) -> VmName {
    VmName::new(name).expect("a valid name")
}

/// The message of a refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.expect_err("refused") {
        ClientError::Refused { message, .. } => message,
        other => panic!("{other}"),
    }
}

#[test]
fn status_and_blocks_are_the_machine_s() {
    let fixture = Fixture::new();
    fixture.machine.change(|state| state.plugged = 6 * MIB);
    let client = fixture.client();
    assert_eq!(client.status().expect("answered"), fixture.machine.status());
    let regions = client.blocks().expect("answered");
    let seen = |region: &BlockReport| {
        (
            region.start,
            region.nr_blocks,
            region.plugged_blocks(),
            region.block_size,
        )
    };
    assert_eq!(
        Vec::from_iter(regions.iter().map(seen)),
        [(4 * GIB, 512, 3, 2 * MIB), (8 * GIB, 3, 0, 4 * MIB)]
    );
    assert_eq!(client.pid(), std::process::id());
}

#[test]
fn an_order_to_the_balloon_is_carried_out_or_refused_with_the_reason() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let interval = |seconds| client.balloon(BalloonRequest::StatisticsInterval { seconds });
    assert_eq!(interval(7).expect("accepted").statistics_interval_seconds, 7);
    let refusal = |result: Result<BalloonReport, ClientError>| result.expect_err("refused").to_string();
    assert!(refusal(interval(86_401)).contains("seconds 86401: at most 86400"));
    let hinting = refusal(client.balloon(BalloonRequest::StartHinting));
    assert!(
        hinting.contains("no balloon: start the VM with --balloon"),
        "{hinting}"
    );
}

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
        state.vmstat = Some("pgfault 1\nresize_stall_reason no-memory\n".into());
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

#[test]
fn what_the_machine_refuses_reaches_the_client_with_value_and_rule() {
    let fixture = Fixture::new();
    let message = refused(fixture.client().resize(4 * GIB, None));
    assert!(
        message.contains(&(4 * GIB).to_string()) && message.contains("beyond"),
        "{message}"
    );
    let message = refused(fixture.client().resize_in(Some(3), BOOT, None));
    assert_eq!(message, "region 3: this VM has 1 regions, counted from 0");
    let message = refused(fixture.client().guest("dance"));
    assert_eq!(message, "the guest refused: dance: no such command");
    let message = refused(
        fixture
            .client()
            .resize(BOOT, Some(Duration::from_secs(MAX_WAIT_SECONDS + 1))),
    );
    assert_eq!(
        message,
        format!(
            "wait_seconds {}: at most {MAX_WAIT_SECONDS}",
            MAX_WAIT_SECONDS + 1
        )
    );
}

#[test]
fn the_guest_s_answer_arrives_as_it_is() {
    assert_eq!(
        Fixture::new().client().guest("say \"hi\"").expect("answered"),
        "hi\nthere\n"
    );
}

#[test]
fn malformed_requests_get_a_fault_and_the_next_good_one_is_served() {
    let fixture = Fixture::new();
    let long = format!("{{\"command\":\"{}\"}}", "x".repeat(BODY_LIMIT));
    for (line, body, message) in [
        ("GET /", "", "/: no such path"),
        ("GET /ballast/v2/vm", "", "no such path"),
        ("DELETE /ballast/v1/vm", "", "not with this method"),
        ("PUT /ballast/v1/memory", "", "the body is not what belongs here"),
        ("PUT /ballast/v1/memory", "{}", "missing field `total_bytes`"),
        ("PUT /ballast/v1/memory", "{\"total_bytes\":-1}", "expected u64"),
        ("PUT /ballast/v1/memory", "{\"total_bytes\":1e30}", "expected u64"),
        (
            "PUT /ballast/v1/memory",
            "{\"total_bytes\":1,\"wait\":1}",
            "unknown field `wait`",
        ),
        (
            "PUT /ballast/v1/memory",
            "[[[[",
            "the body is not what belongs here",
        ),
        (
            "POST /ballast/v1/guest",
            "{\"command\":\"help\"} x",
            "trailing characters",
        ),
        (
            "POST /ballast/v1/guest",
            "\u{0}\u{1}",
            "the body is not what belongs here",
        ),
        (
            "POST /ballast/v1/guest",
            &long,
            "the body is longer than 51200 bytes",
        ),
    ] {
        let answer = fixture.request(line, body);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line}: {answer}");
        assert!(
            answer.contains("{\"fault_message\":") && answer.contains(message),
            "{line}: {answer}"
        );
        assert!(fixture.client().status().is_ok(), "after {line}");
    }
    assert!(!fixture.machine.stopped.load(Ordering::SeqCst));
    fixture.raw("this is not HTTP\r\n\r\n");
    assert!(fixture.client().status().is_ok(), "after nonsense");
}

#[test]
fn a_stopped_server_answers_what_it_has_begun() {
    let mut fixture = Fixture::new();
    let client = fixture.client();
    let waiter = std::thread::spawn(move || client.resize(BOOT + 8 * MIB, Some(Duration::from_secs(600))));
    fixture.machine.until_waiting(1);
    fixture.machine.stop();
    fixture.server.take().expect("running").shut_down();
    let report = waiter.join().expect("no panic").expect("answered");
    assert_eq!(report.outcome, ResizeState::Incomplete);
}

#[test]
fn a_server_that_is_gone_is_a_vm_that_has_exited() {
    let mut fixture = Fixture::new();
    let client = fixture.client();
    fixture.server.take().expect("running").shut_down();
    assert!(matches!(client.status(), Err(ClientError::Exited { .. })));
}

#[test]
fn unknown_vms_are_told_from_others() {
    let fixture = Fixture::new();
    let error = ControlClient::open_in(&fixture.registry, &name("other")).expect_err("unknown");
    assert!(
        matches!(error, ClientError::Registry(RegistryError::Unknown { .. })),
        "{error}"
    );
}

#[test]
fn a_guest_is_held_and_let_go_once() {
    let fixture = Fixture::new();
    let client = fixture.client();
    assert!(client.pause().expect("answered"));
    assert!(!client.pause().expect("answered"));
    assert!(client.resume().expect("answered"));
    assert!(!client.resume().expect("answered"));
}

/// The sequence numbers on lines of events.
fn numbers(lines: &[String]) -> Vec<u64> {
    let number = |line: &String| {
        let event: crate::journal::Event = serde_json::from_str(line).expect("an event");
        event.sequence
    };
    lines.iter().map(number).collect()
}

#[test]
fn a_reader_gets_what_has_happened_and_then_what_happens() {
    let fixture = Fixture::new();
    let emit = |count| {
        for _ in 0..count {
            fixture
                .machine
                .events
                .emit(EventKind::Reboot { cause: "x".into() });
        }
    };
    emit(3);
    let mut lines: Vec<String> = Vec::new();
    let read = fixture.client().events(1, false, |line| {
        lines.push(line.to_owned());
        ControlFlow::Continue(())
    });
    read.expect("a stream that ends by itself");
    assert_eq!(numbers(&lines), [2, 3]);

    let mut seen = 0;
    let mut lines: Vec<String> = Vec::new();
    let read = fixture.client().events(0, true, |line| {
        lines.push(line.to_owned());
        seen += 1;
        match seen {
            3 => emit(2),
            5 => fixture.machine.events.end(),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    read.expect("the stream ends with the VM");
    assert_eq!(numbers(&lines), [1, 2, 3, 4, 5]);
}

#[test]
fn readers_are_bounded_and_one_that_leaves_makes_room() {
    let fixture = Fixture::new();
    fixture
        .machine
        .events
        .emit(EventKind::Reboot { cause: "x".into() });
    let line = "GET /ballast/v1/events HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut readers: Vec<UnixStream> = Vec::new();
    for _ in 0..MAX_READERS {
        let mut reader = UnixStream::connect(fixture.registration.socket()).expect("listening");
        reader.write_all(line.as_bytes()).expect("sent");
        let mut head = [0; 15];
        reader.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        readers.push(reader);
    }
    let none = |_: &str| ControlFlow::Break(());
    let message = refused(fixture.client().events(0, true, none));
    assert!(message.contains("16 readers of events"), "{message}");
    readers.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.client().events(0, true, none).is_err() {
        assert!(
            Instant::now() < deadline,
            "a reader that has left keeps its place"
        );
    }
}

#[test]
fn a_query_that_is_none_is_refused() {
    let fixture = Fixture::new();
    let answer = fixture.request("GET /ballast/v1/events?since=3", "");
    assert!(
        answer.contains("400 Bad Request") && answer.contains("after=NUMBER"),
        "{answer}"
    );
}
