//! What stands at the host behind a port of the console: a file that takes what the guest writes, or a unix socket at
//! which one program at a time talks with the guest.
//!
//! Nothing here waits for a program: what it does not take stays with the device, which holds the guest back in the end.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use event_manager::EventSet;

use super::OnLoop;
use crate::spec::{ConsolePortSpec, PortEnd};
use crate::vsock::SocketFile;

/// Bytes moved at a time.
const PIECE: usize = 16 << 10;

/// The host's end of one port.
#[derive(Debug)]
pub(super) struct HostPort {
    /// The port's number in the device.
    pub(super) number: usize,
    end: End,
}

#[derive(Debug)]
enum End {
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
    pub(super) fn open(number: usize, spec: &ConsolePortSpec) -> io::Result<Self> {
        let end = match &spec.end {
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

    /// A file is always there.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.end, End::File(_))
    }

    /// Waits for programs.
    pub(super) fn start(&self, source: u32, on: &mut OnLoop<'_, '_>) {
        if let End::Socket { listener, .. } = &self.end {
            on.add_source(listener, source, EventSet::IN);
        }
    }

    /// Something has happened at this end.
    pub(super) fn ready(&mut self, source: u32, port: &mut impl DevicePort, on: &mut OnLoop<'_, '_>) {
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
        match &mut self.end {
            End::File(file) => loop {
                let bytes = port.take(PIECE);
                if bytes.is_empty() {
                    return;
                }
                // A full disk costs the file what is lost, not the guest its machine.
                let _ = file.write_all(&bytes);
            },
            End::Socket { program, .. } => {
                let Some(present) = program else { return };
                if present.send(port).and_then(|()| present.receive(port)).is_err() {
                    on.remove_source(&present.socket);
                    *program = None;
                    port.set_open(false);
                }
            }
        }
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
