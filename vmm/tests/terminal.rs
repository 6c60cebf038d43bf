//! `ballast run` on a terminal (a pseudo-terminal here): raw mode while the guest has it, the escape key, and the terminal's
//! own settings back on every way out. Needs /dev/kvm, and fails without.
#![expect(clippy::unwrap_used, reason = "the helpers of these tests are tests, too")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;

/// 32-bit code at 2 MiB: says `.` on COM1, then echoes what it receives with 1 added, for ever.
const ECHO: &[u8] = &[
    0x66, 0xBA, 0xF8, 0x03, // mov dx, 0x3f8
    0xB0, b'.', 0xEE, // mov al, '.'; out dx, al
    0x66, 0xBA, 0xFD, 0x03, // wait: mov dx, 0x3fd
    0xEC, 0xA8, 0x01, 0x74, 0xF7, // in al, dx; test al, 1; jz wait
    0x66, 0xBA, 0xF8, 0x03, // mov dx, 0x3f8
    0xEC, 0xFE, 0xC0, 0xEE, // in al, dx; inc al; out dx, al
    0xEB, 0xED, // jmp wait
];
/// Powers off after its `.`.
const BRIEF: &[u8] = &[
    0x66, 0xBA, 0xF8, 0x03, 0xB0, b'.', 0xEE, // as above
    0x66, 0xBA, 0x00, 0x06, 0xB0, 0x34, 0xEE, 0xEB,
    0xFE, // mov dx, 0x600; mov al, 0x34; out dx, al; jmp .
];

/// A PVH image around `code`.
fn kernel(code: &[u8]) -> Vec<u8> {
    let (entry, note_at) = (0x20_0000u32, 64 + 2 * 56);
    let mut image = vec![0; note_at];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(32, &[64]);
    put(54, &[56, 0, 2, 0]);
    for (at, kind, offset, size) in [(64, 1u8, note_at + 20, code.len()), (64 + 56, 4, note_at, 20)] {
        put(at, &[kind]);
        put(at + 8, &(offset as u64).to_le_bytes());
        put(at + 24, &u64::from(entry).to_le_bytes());
        put(at + 32, &(size as u64).to_le_bytes());
        put(at + 40, &(size as u64).to_le_bytes());
    }
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry] {
        image.extend(word.to_le_bytes());
    }
    image.extend(code);
    image
}

/// `ballast run` with a terminal as its standard input and output.
struct Session {
    child: Child,
    terminal: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    _home: TempDir,
}

impl Session {
    fn start(code: &[u8]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let image = home.path().join("kernel");
        std::fs::write(&image, kernel(code)).unwrap();
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let inside = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        assert!(is_cooked(&terminal), "a new terminal echoes");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command
            .args(["run", "--name", "t", "--memory", "32M", "--kernel"])
            .arg(&image);
        command.env("XDG_RUNTIME_DIR", home.path());
        let child = command
            .stdin(Stdio::from(inside.try_clone().unwrap()))
            .stdout(Stdio::from(inside))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (screen, mut reader) = (Arc::clone(&shown), File::from(terminal.try_clone().unwrap()));
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            // Ends when the last one inside has closed the terminal.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                screen.lock().unwrap().extend(&bytes[..count]);
            }
        });
        Self {
            child,
            terminal,
            shown,
            _home: home,
        }
    }

    fn type_in(&self, bytes: &[u8]) {
        File::from(self.terminal.try_clone().unwrap())
            .write_all(bytes)
            .unwrap();
    }

    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !String::from_utf8_lossy(&self.shown.lock().unwrap()).contains(text) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the screen: {:?}",
                self.shown.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Of a failed test; a child that has ended needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_cooked(terminal: &OwnedFd) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
}

fn is_raw(terminal: &OwnedFd) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
}

#[test]
fn the_escape_key_stops_the_vm_and_gives_the_terminal_back() {
    let mut session = Session::start(ECHO);
    session.wait_for(".");
    assert!(is_raw(&session.terminal));
    session.type_in(b"\x01h");
    session.wait_for("Ctrl-A x");
    session.type_in(b"\x01x");
    assert_eq!(session.end().code(), Some(0));
    assert!(is_cooked(&session.terminal));
}

#[test]
fn the_guest_gets_every_other_key_as_it_is_typed() {
    let mut session = Session::start(ECHO);
    session.wait_for(".");
    // Return, Ctrl-C and the escape key itself are keys like others to a guest.
    session.type_in(b"HAL\r\x03\x01\x01");
    session.wait_for("IBM\x0e\x04\x02");
    session.type_in(b"\x01x");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_guest_that_powers_off_gives_the_terminal_back() {
    let mut session = Session::start(BRIEF);
    assert_eq!(session.end().code(), Some(0));
    session.wait_for(".");
    assert!(is_cooked(&session.terminal));
}

#[test]
fn signals_give_the_terminal_back() {
    use rustix::process::{Pid, Signal, kill_process};
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut session = Session::start(ECHO);
        session.wait_for(".");
        let process = Pid::from_child(&session.child);
        kill_process(process, signal).unwrap();
        assert_eq!(session.end().code(), Some(0), "{signal:?}");
        assert!(is_cooked(&session.terminal), "{signal:?}");
    }
}

/// Runs in a process of its own, made by the next test: panics on a thread while the terminal is raw and its keeper alive.
#[test]
#[ignore = "part of a_panic_gives_the_terminal_back, which runs it on a terminal"]
fn panic_with_raw_mode() {
    let raw_mode = vmm::terminal::RawMode::enter().unwrap();
    assert!(raw_mode.is_terminal());
    std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
    println!("has panicked");
    // Until the other side has looked.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

#[test]
fn a_panic_gives_the_terminal_back() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let inside = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "panic_with_raw_mode"])
        .stdin(Stdio::from(inside))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    while !output.contains("has panicked") {
        let mut bytes = [0; 256];
        let count = stdout.read(&mut bytes).unwrap();
        assert!(count > 0, "{output}");
        output.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(is_cooked(&terminal));
    File::from(terminal).write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
}
