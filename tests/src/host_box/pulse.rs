//! The pulse of a box: what tells a machine that works for long from one that has stopped.
//!
//! QEMU's emulation of a processor with AMD-V was seen to come to rest about once in fifty boxes: idle, nothing on the
//! console, no timer running, as after an interrupt that got lost. So the box is felt from outside: a line is sent
//! over the first serial port several times a second, which the box answers. The line is also an interrupt from
//! another source, upon which a pending one is delivered; a box that does not answer even so has stopped.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two lines.
const BEAT: Duration = Duration::from_millis(250);
/// A box that has not answered for so long has stopped. The slowest that works, on a machine with many times more to
/// do than it has processors, takes seconds.
const STILL: Duration = Duration::from_secs(90);

/// What the box runs on its first serial port. A line with something in it is the box's order, and goes to [`ORDER`].
pub(super) const ANSWER: &str = r#"stty -F /dev/ttyS0 -echo
mkfifo ORDER
while read -r line; do
  [ -z "$line" ] || echo "$line" >ORDER
  echo "host box: alive"
done </dev/ttyS0 >/dev/ttyS0 &
"#;

/// The pipe in the box that its order comes out of.
pub(super) const ORDER: &str = "/order";

/// The first serial port of one box: its console, and its pulse.
pub(super) struct Pulse {
    socket: PathBuf,
    console: PathBuf,
    line: Option<UnixStream>,
    beaten: Instant,
    answered: Instant,
    still: Duration,
    order: Option<String>,
}

impl Pulse {
    /// A port whose socket and log are in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            socket: dir.join("pulse"),
            console: dir.join("console"),
            line: None,
            beaten: Instant::now(),
            answered: Instant::now(),
            still: STILL,
            order: None,
        }
    }

    /// As [`Self::new`], and the box gets `order` once it has answered: what is sent to a machine that is still being read
    /// from its file is lost.
    pub(super) fn with_order(dir: &Path, order: &str) -> Self {
        Self {
            order: Some(format!("{order}\n")),
            ..Self::new(dir)
        }
    }

    /// The arguments that give QEMU the port.
    pub(super) fn arguments(&self) -> [String; 4] {
        let (socket, console) = (self.socket.display(), self.console.display());
        [
            "-chardev".to_owned(),
            format!("socket,id=pulse,path={socket},server=on,wait=off,logfile={console}"),
            "-serial".to_owned(),
            "chardev:pulse".to_owned(),
        ]
    }

    /// Feels the pulse; to be called again and again. Answers whether the box is alive.
    pub(super) fn is_felt(&mut self) -> bool {
        if self.line.is_none() {
            self.line = UnixStream::connect(&self.socket).ok();
            if let Some(line) = &self.line {
                line.set_nonblocking(true)
                    .unwrap_or_else(|error| panic!("a socket that must block: {error}"));
            }
        }
        if let Some(line) = &mut self.line {
            // What cannot be sent now is sent with the next beat.
            if self.beaten.elapsed() >= BEAT {
                let _ = line.write(b"\n");
                self.beaten = Instant::now();
            }
            let mut bytes = [0; 4096];
            match line.read(&mut bytes) {
                Ok(0) => {}
                Ok(_) => {
                    self.answered = Instant::now();
                    if let Some(order) = self.order.take() {
                        line.write_all(order.as_bytes())
                            .unwrap_or_else(|error| panic!("a box that answers takes no order: {error}"));
                    }
                }
                // A box that has just switched itself off, with a beat unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        self.answered.elapsed() < self.still
    }

    /// What the box has written, without its answers.
    pub(super) fn console(&self) -> String {
        let text = String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).replace('\r', "");
        let lines = text.split_inclusive('\n');
        lines.filter(|line| line.trim() != "host box: alive").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn a_port_that_answers_is_alive_and_one_that_does_not_has_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let mut pulse = Pulse::new(dir.path());
        let port = UnixListener::bind(&pulse.socket).unwrap();
        let answering = thread::spawn(move || {
            let (mut line, _) = port.accept().unwrap();
            let mut byte = [0];
            for _ in 0..3 {
                line.read_exact(&mut byte).unwrap();
                line.write_all(b"host box: alive\n").unwrap();
            }
            line
        });
        while !answering.is_finished() {
            assert!(pulse.is_felt());
        }
        // The port stays open, and says nothing any more: this loop ends.
        let silent = answering.join().unwrap();
        pulse.still = 2 * BEAT;
        while pulse.is_felt() {
            thread::yield_now();
        }
        drop(silent);
    }

    #[test]
    fn the_answers_are_not_part_of_what_is_on_the_console() {
        let dir = tempfile::tempdir().unwrap();
        let pulse = Pulse::new(dir.path());
        fs::write(&pulse.console, "one\r\nhost box: alive\r\ntwo\r\n").unwrap();
        assert_eq!(pulse.console(), "one\ntwo\n");
    }
}
