//! What stands at the host behind a port of the console: a file that takes what the guest writes, a unix socket at
//! which one program at a time talks with the guest, or, for the first port, the screen.
//!
//! Nothing here waits for a program: what it does not take stays with the device, which holds the guest back in the end.
//! The guest's console is not held back: a Linux guest that writes to it spins until the device has taken all
//! (`drivers/char/virtio_console.c`, `__send_to_port`), so of what nobody reads only the newest is kept.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use devices::console::FROM_GUEST_LIMIT;
use event_manager::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::OnLoop;
use crate::spec::PortEnd;
use crate::terminal::OutputWriter;
use crate::vsock::SocketFile;

/// Bytes moved at a time.
const PIECE: usize = 16 << 10;

/// Bytes of the guest's console that wait for a reader, at most.
const KEPT: usize = FROM_GUEST_LIMIT / 2;

/// The host's end of one port.
#[derive(Debug)]
pub(super) struct HostPort {
    /// The port's number in the device; 0 is the guest's console.
    pub(super) number: usize,
    end: End,
}

#[derive(Debug)]
enum End {
    Nothing,
    Screen {
        screen: OutputWriter,
        /// Signalled when the screen has caught up.
        room: EventFd,
    },
    File(File),
    Socket {
        listener: UnixListener,
        _file: SocketFile,
        program: Option<Program>,
    },
}

/// The program at the socket.
#[derive(Debug)]
struct Program {
    socket: UnixStream,
    /// From the guest, not taken yet; at most [`PIECE`].
    unsent: Vec<u8>,
}

/// The device's side of a port, for [`HostPort::move_bytes`].
pub(super) trait DevicePort {
    /// Bytes of the guest that wait to be taken.
    fn waiting(&self) -> usize;
    /// Bytes for the guest that there is room for.
    fn room(&self) -> usize;
    /// Hands over bytes, no more than there is room for.
    fn push(&mut self, bytes: &[u8]);
    /// Takes bytes of the guest.
    fn take(&mut self, max: usize) -> Vec<u8>;
    /// Somebody is there, or nobody any more.
    fn set_open(&mut self, open: bool);
}

impl HostPort {
    /// Opens the file, or listens at the socket.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) fn open(number: usize, end: &PortEnd) -> io::Result<Self> {
        let end = match end {
            PortEnd::File(path) => End::File(OpenOptions::new().append(true).create(true).open(path)?),
            PortEnd::Socket(path) => {
                let (listener, file) = SocketFile::listen(path)?;
                End::Socket {
                    listener,
                    _file: file,
                    program: None,
                }
            }
        };
        Ok(Self { number, end })
    }

    /// What the user sees. What is typed takes another way ([`crate::machine::input`]).
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn on_screen(number: usize, screen: OutputWriter) -> io::Result<Self> {
        let room = EventFd::new(libc::EFD_NONBLOCK)?;
        screen.signal_room(room.try_clone()?);
        let end = End::Screen { screen, room };
        Ok(Self { number, end })
    }

    /// An end that takes everything and keeps nothing.
    pub(super) fn nowhere(number: usize) -> Self {
        let end = End::Nothing;
        Self { number, end }
    }

    /// Whether somebody is always there.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.end, End::Socket { .. })
    }

    /// Waits for programs.
    pub(super) fn start(&self, source: u32, on: &mut OnLoop<'_, '_>) {
        match &self.end {
            End::Socket { listener, .. } => on.add_source(listener, source, EventSet::IN),
            End::Screen { room, .. } => on.add_source(room, source, EventSet::IN),
            End::File(_) | End::Nothing => {}
        }
    }

    /// Something has happened at this end.
    pub(super) fn ready(&mut self, source: u32, port: &mut impl DevicePort, on: &mut OnLoop<'_, '_>) {
        if let End::Screen { room, .. } = &self.end {
            // Only its being signalled counts.
            let _ = room.read();
        }
        // First, so that a program that has gone makes room for the next.
        self.move_bytes(port, on);
        if let End::Socket {
            listener, program, ..
        } = &mut self.end
            && let Ok((socket, _)) = listener.accept()
        {
            // A second program finds its socket closed.
            if program.is_none() && socket.set_nonblocking(true).is_ok() {
                let changes =
                    EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
                on.add_source(&socket, source, changes);
                let unsent = Vec::new();
                *program = Some(Program { socket, unsent });
                port.set_open(true);
            }
        }
    }

    /// Moves what can be moved, in both directions.
    pub(super) fn move_bytes(&mut self, port: &mut impl DevicePort, on: &mut OnLoop<'_, '_>) {
        if let Some(gone) = self.exchange(port) {
            on.remove_source(&gone);
        }
    }

    /// [`Self::move_bytes`]; returns the socket of a program that has gone by it.
    pub(super) fn exchange(&mut self, port: &mut impl DevicePort) -> Option<UnixStream> {
        let mut gone = None;
        match &mut self.end {
            End::Nothing => pour(port, &mut io::sink(), || true),
            End::File(file) => pour(port, file, || true),
            End::Screen { screen, .. } => {
                let mut writer = screen.clone();
                pour(port, &mut writer, || !screen.is_full());
            }
            End::Socket { program, .. } => {
                if let Some(present) = program
                    && present.send(port).and_then(|()| present.receive(port)).is_err()
                {
                    gone = program.take().map(|program| program.socket);
                    port.set_open(false);
                }
            }
        }
        if self.number == 0 {
            while let beyond @ 1.. = port.waiting().saturating_sub(KEPT) {
                port.take(beyond);
            }
        }
        gone
    }
}

/// What the guest has written goes to `writer` while there is room. A file that fails, as on a full disk, loses what
/// follows; the guest does not lose its machine.
fn pour(port: &mut impl DevicePort, writer: &mut impl Write, has_room: impl Fn() -> bool) {
    while has_room() {
        let bytes = port.take(PIECE);
        if bytes.is_empty() {
            return;
        }
        let _ = writer.write_all(&bytes);
    }
}

impl Program {
    /// To the program, until it takes no more.
    ///
    /// # Errors
    /// It is gone.
    fn send(&mut self, port: &mut impl DevicePort) -> io::Result<()> {
        loop {
            if self.unsent.is_empty() {
                self.unsent = port.take(PIECE);
            }
            if self.unsent.is_empty() {
                return Ok(());
            }
            match self.socket.write(&self.unsent) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// From the program, as far as the guest has room.
    ///
    /// # Errors
    /// It is gone.
    fn receive(&mut self, port: &mut impl DevicePort) -> io::Result<()> {
        let mut piece = [0; PIECE];
        loop {
            let room = port.room().min(PIECE);
            if room == 0 {
                return Ok(());
            }
            match self.socket.read(&mut piece[..room]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => port.push(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fs;
    use std::os::fd::OwnedFd;

    use tempfile::TempDir;

    use super::*;
    use crate::terminal::{Output, Sink};

    /// A port whose guest has written `from_guest`.
    #[derive(Default)]
    struct Device {
        from_guest: VecDeque<u8>,
        to_guest: Vec<u8>,
        open: bool,
    }

    impl DevicePort for Device {
        fn waiting(&self) -> usize {
            self.from_guest.len()
        }

        fn room(&self) -> usize {
            8 - self.to_guest.len()
        }

        fn push(&mut self, bytes: &[u8]) {
            self.to_guest.extend(bytes);
        }

        fn take(&mut self, max: usize) -> Vec<u8> {
            let len = self.from_guest.len().min(max);
            self.from_guest.drain(..len).collect()
        }

        fn set_open(&mut self, open: bool) {
            self.open = open;
        }
    }

    fn written(len: usize) -> Device {
        let from_guest = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        Device {
            from_guest,
            ..Device::default()
        }
    }

    fn socket(folder: &TempDir, number: usize) -> HostPort {
        HostPort::open(number, &PortEnd::Socket(folder.path().join("socket"))).unwrap()
    }

    #[test]
    fn of_a_console_that_nobody_reads_the_newest_is_kept_and_of_a_named_port_everything() {
        let folder = TempDir::new().unwrap();
        let mut device = written(KEPT + 1000);
        let newest: VecDeque<u8> = device.from_guest.range(1000..).copied().collect();
        socket(&folder, 0).exchange(&mut device);
        assert!(device.from_guest == newest);
        let mut device = written(KEPT + 1000);
        socket(&folder, 1).exchange(&mut device);
        assert_eq!(device.waiting(), KEPT + 1000);
    }

    #[test]
    fn a_file_gets_all_of_it_behind_what_it_has_and_nowhere_keeps_nothing() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "before ").unwrap();
        let mut device = written(3 * PIECE);
        let all = [b"before ", &*device.from_guest.make_contiguous()].concat();
        let mut port = HostPort::open(1, &PortEnd::File(path.clone())).unwrap();
        assert!(port.is_open());
        port.exchange(&mut device);
        assert!(fs::read(&path).unwrap() == all && device.waiting() == 0);
        let mut device = written(3 * PIECE);
        HostPort::nowhere(0).exchange(&mut device);
        assert_eq!(device.waiting(), 0);
    }

    #[test]
    fn what_the_screen_has_no_room_for_stays_with_the_device_and_room_is_told() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::start(Sink::File(File::from(OwnedFd::from(writer)))).unwrap();
        let mut port = HostPort::on_screen(0, output.writer()).unwrap();
        let mut device = written(KEPT);
        let all: Vec<u8> = device.from_guest.iter().copied().collect();
        // More than the pipe and the buffer together take.
        port.exchange(&mut device);
        assert!(device.waiting() > 0 && output.writer().is_full());
        let End::Screen { room, .. } = &port.end else {
            unreachable!("a screen")
        };
        let room = room.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut shown = vec![0; KEPT];
            reader.read_exact(&mut shown).map(|()| shown)
        });
        while device.waiting() > 0 {
            // Signalled again and again as the reader goes on.
            while room.read().is_err() {
                std::thread::yield_now();
            }
            port.exchange(&mut device);
        }
        output.finish();
        assert!(reader.join().unwrap().unwrap() == all);
    }

    #[test]
    fn a_program_gets_what_has_waited_and_gives_no_more_than_there_is_room_for() {
        let folder = TempDir::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut port = socket(&folder, 1);
        let End::Socket { program, .. } = &mut port.end else {
            unreachable!("a socket")
        };
        let unsent = Vec::new();
        *program = Some(Program { socket: ours, unsent });
        let mut device = written(5);
        device.open = true;
        theirs.write_all(b"0123456789").unwrap();
        assert!(port.exchange(&mut device).is_none());
        let mut got = [0; 5];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(
            (got, device.to_guest.as_slice()),
            ([0, 1, 2, 3, 4], &b"01234567"[..])
        );
        device.to_guest.clear();
        drop(theirs);
        let gone = port.exchange(&mut device);
        assert_eq!(device.to_guest, b"89");
        assert!(
            gone.is_some() && !device.open,
            "it is gone, and the guest is told"
        );
    }
}
