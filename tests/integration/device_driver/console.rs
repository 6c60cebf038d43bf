//! The control channel over the console: commands in, framed replies out, however long.

use std::task::Poll;

use devices::console::{Console, FROM_GUEST_LIMIT};
use guest_virtio::DeviceFault;
use guest_virtio::console::{ConsoleDriver, EmergencyConsole};
use guest_virtio::control::{self, Command, Reply};
use proptest::prelude::*;

use super::bus::Bus;
use super::memory::{GuestRam, guest_ram};
use super::task::Task;

type ConsoleBus<'m> = Bus<'m, Console>;
type Driver<'b, 'm> = ConsoleDriver<&'b ConsoleBus<'m>, &'m GuestRam>;

/// Most bytes the host takes at a time, so that long replies come in many pieces.
const HOST_TAKES: usize = 1000;

/// Answers `long N` with N bytes, `echo WORD...` with its words, and nothing else.
fn answer(command: &Command<'_>) -> Reply {
    let words: Vec<&str> = command.arguments().collect();
    match (command.name(), &words[..]) {
        ("long", [len]) => Reply::Ok(text(len.parse().unwrap())),
        ("echo", words) => Reply::Ok(words.join(" ")),
        (name, _) => Reply::Err(format!("no command {name}")),
    }
}

fn text(len: usize) -> String {
    (0..len)
        .map(|at| char::from(b'a' + u8::try_from(at % 23).unwrap()))
        .collect()
}

/// The guest at work, and the host's end of the stream.
struct Machine<'a, 'b, 'm> {
    bus: &'b ConsoleBus<'m>,
    driver: &'a Driver<'b, 'm>,
    server: Task<'a, DeviceFault>,
    received: Vec<u8>,
}

impl Machine<'_, '_, '_> {
    /// Lets the guest run and takes what it sends, until nothing moves any more.
    fn settle(&mut self) {
        loop {
            assert!(self.server.poll().is_pending(), "the server never ends");
            let taken = self.bus.host(|transport| transport.take_from_guest(HOST_TAKES));
            let quiet = taken.is_empty();
            self.received.extend(taken);
            if self.bus.take_interrupt() {
                self.driver.on_interrupt();
            } else if quiet {
                return;
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.bus.host(|transport| transport.push_to_guest(rest));
            rest = &rest[sent..];
            self.settle();
        }
    }

    /// The next reply, taken out of what was received: whether it was `ok`, and its body.
    fn reply(&mut self) -> Result<String, String> {
        let header_len = self
            .received
            .iter()
            .position(|&byte| byte == b'\n')
            .expect("a header")
            + 1;
        let rest = self.received.split_off(header_len);
        let header = String::from_utf8(std::mem::replace(&mut self.received, rest)).unwrap();
        let (word, len) = header.trim_end().split_once(' ').unwrap();
        let rest = self.received.split_off(len.parse().unwrap());
        let body = String::from_utf8(std::mem::replace(&mut self.received, rest)).unwrap();
        match word {
            "ok" => Ok(body),
            "err" => Err(body),
            other => panic!("reply starts with {other:?}"),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String, String> {
        self.send(format!("{line}\n").as_bytes());
        let reply = self.reply();
        assert_eq!(self.received, b"", "nothing follows the reply");
        reply
    }
}

macro_rules! machine {
    ($machine:ident) => {
        let (ram, ..) = guest_ram(1);
        let bus = Bus::new(&ram, Console::new(None));
        let driver = ConsoleDriver::start(&bus, &bus.ram).unwrap();
        let mut handler = answer;
        let mut $machine = Machine {
            bus: &bus,
            driver: &driver,
            server: Task::new(control::serve(&driver, &mut handler)),
            received: Vec::new(),
        };
        $machine.settle();
    };
}

#[test]
fn a_command_is_answered() {
    machine!(machine);
    assert_eq!(machine.ask("echo one two"), Ok("one two".into()));
    assert_eq!(machine.ask("echo"), Ok(String::new()));
    assert_eq!(machine.ask("blocks"), Err("no command blocks".into()));
    assert_eq!(machine.ask(""), Err("empty command".into()));
    assert_eq!(machine.bus.look(|transport| transport.guest_faults()), 0);
}

#[test]
fn replies_around_every_buffer_boundary_arrive_whole() {
    machine!(machine);
    for pages in [1, 2, 4, 5, 16] {
        for len in pages * 4096 - 12..pages * 4096 + 4 {
            assert_eq!(machine.ask(&format!("long {len}")), Ok(text(len)));
        }
    }
}

#[test]
fn a_reply_longer_than_everything_in_between_can_hold_arrives_whole() {
    machine!(machine);
    let len = FROM_GUEST_LIMIT + 100_000;
    assert_eq!(machine.ask(&format!("long {len}")), Ok(text(len)));
}

#[test]
fn commands_that_come_in_pieces_or_all_at_once_are_answered_in_order() {
    machine!(machine);
    for byte in b"echo a b\n" {
        machine.send(&[*byte]);
    }
    assert_eq!(machine.reply(), Ok("a b".into()));
    let many: String = (0..500).map(|number| format!("echo {number}\n")).collect();
    machine.send(many.as_bytes());
    for number in 0..500 {
        assert_eq!(machine.reply(), Ok(number.to_string()));
    }
    assert_eq!(machine.received, b"");
}

#[test]
fn an_endless_command_is_refused_and_the_next_one_is_served() {
    machine!(machine);
    machine.send(&vec![b'x'; 200_000]);
    assert_eq!(machine.received, b"");
    machine.send(b"\n");
    assert_eq!(machine.reply(), Err("command of more than 256 bytes".into()));
    assert_eq!(machine.ask("echo yes"), Ok("yes".into()));
}

#[test]
fn a_restarted_console_serves_again() {
    machine!(machine);
    machine.send(b"echo half");
    machine.driver.restart().unwrap();
    machine.settle();
    assert_eq!(machine.ask("echo whole"), Ok("whole".into()));
}

#[test]
fn last_words_reach_the_host_before_and_after_the_driver_is_set_up() {
    let (ram, ..) = guest_ram(1);
    let bus = Bus::new(&ram, Console::new(None));
    let words = |text: &str| {
        let emergency = EmergencyConsole::probe(&bus).unwrap();
        text.bytes().for_each(|byte| emergency.write_byte(byte));
        bus.look(|transport| transport.device().emergency_output())
    };
    assert_eq!(words("early "), b"early ");
    let driver = ConsoleDriver::start(&bus, &bus.ram).unwrap();
    let mut sending = Task::new(driver.transmit(b"stream"));
    assert_eq!(sending.poll(), Poll::Ready(Ok(())));
    assert_eq!(words("and late"), b"early and late");
    assert!(
        bus.look(|transport| transport.is_live()),
        "the driver was not disturbed"
    );
    assert_eq!(bus.look(|transport| transport.device().from_guest_len()), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_bytes_from_the_host_get_one_reply_a_line(lines in prop::collection::vec(".{0,300}", 0..20)) {
        machine!(machine);
        for line in &lines {
            // What the handler would have to parse is not the point here.
            let line = line.replace("long", "echo");
            machine.send(line.as_bytes());
            machine.send(b"\n");
            let _ = machine.reply();
            prop_assert_eq!(&machine.received, b"");
        }
        prop_assert_eq!(machine.ask("echo still here"), Ok("still here".into()));
    }
}
