//! The channel against guests of all sorts, each a function from a line to what it sends back.

use super::*;
use std::sync::Arc;

const SHORT: Duration = Duration::from_millis(60);
const LONG: Duration = Duration::from_secs(20);

/// A guest that answers at once, from within `send`.
struct Guest<F> {
    channel: Arc<Channel>,
    answer: F,
    sent: Mutex<Vec<String>>,
}

impl<F: Fn(&str) -> Vec<u8>> GuestPort for Guest<F> {
    fn is_open(&self) -> bool {
        true
    }
    fn send(&self, bytes: &[u8]) -> bool {
        let line = std::str::from_utf8(bytes).unwrap().trim_end().to_owned();
        self.channel.receive(&(self.answer)(&line));
        self.sent.lock().unwrap().push(line);
        true
    }
}

fn guest<F: Fn(&str) -> Vec<u8>>(answer: F) -> Guest<F> {
    Guest {
        channel: Arc::new(Channel::new()),
        answer,
        sent: Mutex::default(),
    }
}

impl<F: Fn(&str) -> Vec<u8>> Guest<F> {
    fn ask(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        self.channel.command(self, line, timeout)
    }
}

fn frame(word: &str, body: &str) -> Vec<u8> {
    format!("{word} {}\n{body}", body.len()).into_bytes()
}

fn good(line: &str) -> Vec<u8> {
    match line {
        "meminfo" => frame("ok", "MemTotal: 1 kB\n"),
        unknown => frame("err", &format!("{unknown}: no such command")),
    }
}

#[test]
fn an_answer_is_the_body_of_the_reply() {
    let guest = guest(good);
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
    let refused = guest.ask("nonsense", LONG);
    assert_eq!(
        refused,
        Err(GuestCommandError::Refused("nonsense: no such command".into()))
    );
    // Once in step, it stays so.
    assert_eq!(*guest.sent.lock().unwrap(), ["sync-1", "meminfo", "nonsense"]);
}

#[test]
fn a_late_answer_is_never_taken_for_the_next_one() {
    let guest = guest(|line| if line == "slow" { Vec::new() } else { good(line) });
    assert_eq!(
        guest.ask("slow", SHORT),
        Err(GuestCommandError::TimedOut { seconds: 0 })
    );
    guest.channel.receive(&frame("ok", "the answer to slow"));
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
}

#[test]
fn a_late_answer_may_come_in_the_middle_of_the_next_command() {
    let guest = guest(|line| match line {
        "slow" => Vec::new(),
        "sync-2" => [frame("ok", "the answer to slow"), good(line)].concat(),
        line => good(line),
    });
    assert!(guest.ask("slow", SHORT).is_err());
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
}

#[test]
fn what_the_guest_says_unasked_is_not_an_answer() {
    let guest = guest(good);
    guest
        .channel
        .receive(b"Debian GNU/Linux 13 hvc0\n\nlogin: \nok 3\n");
    guest.channel.receive(b"abc");
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
    guest.channel.receive(&frame("ok", "unasked"));
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
}

#[test]
fn a_broken_answer_is_named_and_the_next_command_works() {
    let guest = guest(|line| {
        if line == "break" {
            b"ok many\n".to_vec()
        } else {
            good(line)
        }
    });
    let broken = guest.ask("break", LONG);
    assert!(
        matches!(&broken, Err(GuestCommandError::BadAnswer(why)) if why.contains("ok many")),
        "{broken:?}"
    );
    assert_eq!(guest.ask("meminfo", LONG).unwrap(), "MemTotal: 1 kB\n");
}

#[test]
fn lines_that_could_confuse_the_guest_are_not_sent() {
    let guest = guest(good);
    for line in ["", "  ", "a\nb", "caf\u{e9}", &"x".repeat(257)] {
        assert!(
            matches!(guest.ask(line, LONG), Err(GuestCommandError::BadCommand { .. })),
            "{line:?}"
        );
    }
    assert!(guest.sent.lock().unwrap().is_empty());
}

#[test]
fn whoever_waits_learns_that_the_vm_has_ended() {
    let channel = Arc::new(Channel::new());
    let theirs = Arc::clone(&channel);
    let waiting = std::thread::spawn(move || {
        let guest = Guest {
            channel: Arc::clone(&theirs),
            answer: |_: &str| Vec::new(),
            sent: Mutex::default(),
        };
        theirs.command(&guest, "meminfo", LONG)
    });
    while !channel.lock().busy {
        std::thread::yield_now();
    }
    channel.end();
    assert_eq!(waiting.join().unwrap(), Err(GuestCommandError::Ended));
}

/// A guest that goes as soon as it has answered, before whoever asked has looked.
struct Goes {
    channel: Channel,
    go: fn(&Channel),
}

impl GuestPort for Goes {
    fn is_open(&self) -> bool {
        true
    }
    fn send(&self, bytes: &[u8]) -> bool {
        if bytes == b"reboot\n" {
            self.channel.receive(&frame("ok", "so be it"));
            (self.go)(&self.channel);
        } else {
            self.channel
                .receive(&good(std::str::from_utf8(bytes).unwrap().trim_end()));
        }
        true
    }
}

#[test]
fn an_answer_that_came_before_the_reboot_or_the_end_is_an_answer() {
    for go in [Channel::restart, Channel::end] {
        let channel = Channel::new();
        let guest = Goes { channel, go };
        let answer = guest.channel.command(&guest, "reboot", LONG);
        assert_eq!(answer.as_deref(), Ok("so be it"));
    }
}

#[test]
fn a_guest_that_has_rebooted_is_asked_for_its_step_first() {
    let channel = Channel::new();
    let go = Channel::restart;
    let guest = Goes { channel, go };
    guest.channel.command(&guest, "reboot", LONG).unwrap();
    assert!(guest.channel.lock().out_of_step);
    let answer = guest.channel.command(&guest, "meminfo", LONG);
    assert_eq!(answer.as_deref(), Ok("MemTotal: 1 kB\n"));
}

#[test]
fn commands_from_many_threads_get_their_own_answers() {
    let guest = Arc::new(guest(|line| {
        if line.starts_with("sync-") {
            good(line)
        } else {
            frame("ok", line)
        }
    }));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let guest = Arc::clone(&guest);
            std::thread::spawn(move || {
                let line = format!("echo {number}");
                (0..50).all(|_| guest.ask(&line, LONG).as_deref() == Ok(&line))
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn a_guest_that_listens_to_nothing_is_not_connected() {
    struct Closed;
    impl GuestPort for Closed {
        fn is_open(&self) -> bool {
            false
        }
        fn send(&self, _: &[u8]) -> bool {
            panic!("nothing may be sent");
        }
    }
    let channel = Channel::new();
    assert_eq!(
        channel.command(&Closed, "ps", LONG),
        Err(GuestCommandError::NotConnected)
    );
}
