//! Readers of the stream of events.

use super::*;

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
