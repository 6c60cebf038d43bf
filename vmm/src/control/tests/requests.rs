//! Requests and answers, good ones and others.

use super::*;

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

#[test]
fn a_link_is_set_or_refused_with_the_interfaces_there_are() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let set = |interface, link| client.set_link(LinkRequest { interface, link });
    assert!(set(0, Link::Down).expect("accepted"));
    assert!(!set(0, Link::Up).expect("accepted"));
    assert_eq!(
        refused(set(2, Link::Up)),
        "interface 2: this VM has 1 of them, counted from 0"
    );
}

#[test]
fn the_limits_of_a_disk_are_changed_or_refused_with_the_disks_there_are() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let set = |disk, rate_limiter| client.set_rate(RateRequest { disk, rate_limiter });
    let ops = Some(TokenBucket {
        size: 5,
        one_time_burst: Some(6),
        refill_time: 7,
    });
    let five = RateLimiter {
        ops,
        ..RateLimiter::default()
    };
    assert!(set(0, five).expect("accepted"));
    assert!(!set(0, RateLimiter::default()).expect("accepted"));
    assert_eq!(
        refused(set(1, five)),
        "disk 1: this VM has 1 of them, counted from 0"
    );
}
