//! The console: the guest's control channel or first console, its named ports, and the place for its last words.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::console::{Console, TO_GUEST_LIMIT};
use devices::mmio::{Effects, MmioTransport};
use event_manager::EventSet;
use virtio_wire::console::{QUEUE_RECEIVE, QUEUE_TRANSMIT};
use vmm_sys_util::eventfd::EventFd;

use super::console_ports::{DevicePort, HostPort};
use super::{MachineDevice, OnLoop, Parts};
use crate::machine::VmError;
use crate::machine::channel::GuestPort;
use crate::machine::input::InputLine;
use crate::machine::shared::Shared;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::spec::{HvcMode, PortEnd};

/// Bytes taken from the control channel at a time.
const PIECE: usize = 64 << 10;

/// The guest's first console.
const FIRST: usize = 0;

/// The console device. Lock order: the ports' lock, then the shell's.
#[derive(Debug)]
pub(in super::super) struct ConsoleDevice {
    shell: Arc<VirtioShell<Console>>,
    /// The host's ends of the ports, but for the control channel.
    ports: Mutex<Vec<HostPort>>,
    /// What port 0 is.
    first: HvcMode,
    /// Signalled when the guest has read all that was typed for port 0.
    typed_room: EventFd,
}

impl ConsoleDevice {
    /// A console without a size, and with the ports that were asked for.
    ///
    /// # Errors
    /// A port's socket or file cannot be had, or no descriptors are left.
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, VmError> {
        let specs = &parts.spec.console_ports;
        let names = specs.iter().map(|port| port.name.clone()).collect();
        let shell = VirtioShell::new(Console::with_ports(None, names), parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        let mut ports = Vec::from_iter(first_port(parts)?);
        for (number, spec) in (1..).zip(specs) {
            ports.push(open(number, &spec.end, "--console-port")?);
        }
        for port in ports.iter().filter(|port| port.is_open()) {
            shell.change(|console| ((), console.set_host_open(port.number, true)));
        }
        Ok(Self {
            shell: Arc::new(shell),
            ports: Mutex::new(ports),
            first: parts.spec.hvc.clone(),
            typed_room: EventFd::new(libc::EFD_NONBLOCK)
                .map_err(VmError::host("create event descriptors"))?,
        })
    }

    /// Takes what the guest has written without having been heard; returns the sockets of programs that are found gone.
    fn take_written(&self, machine: &Shared) -> Result<Vec<UnixStream>, VmError> {
        for (queue, _) in (0..).zip(self.shell.notifications()) {
            // What the guest has written; the others are for what it reads.
            if queue % 2 == QUEUE_TRANSMIT {
                self.shell.process(queue)?;
            }
        }
        let mut ports = self.ports();
        let exchange = |port: &mut HostPort| port.exchange(&mut PortOf(&self.shell, port.number));
        let gone = ports.iter_mut().filter_map(exchange).collect();
        self.hear_channel(machine);
        Ok(gone)
    }

    /// Hands on what the guest has said on the control channel, if there is one.
    fn hear_channel(&self, machine: &Shared) {
        if self.first != HvcMode::Channel {
            return;
        }
        loop {
            let bytes = self.shell.change(|console| console.take_from_guest(PIECE));
            if bytes.is_empty() {
                return;
            }
            machine.channel.receive(&bytes);
        }
    }

    fn tell_of_room(&self) {
        // A full counter is a signalled one.
        let _ = self.typed_room.write(1);
    }

    fn ports(&self) -> MutexGuard<'_, Vec<HostPort>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest wrote to its emergency console.
    pub(in super::super) fn last_words(&self) -> String {
        let words = self.shell.look(|console| console.device().emergency_output());
        String::from_utf8_lossy(&words).trim().to_owned()
    }
}

/// The host's end of a port at a socket or a file.
fn open(number: usize, end: &PortEnd, option: &'static str) -> Result<HostPort, VmError> {
    HostPort::open(number, end).map_err(|source| VmError::Socket {
        option,
        path: end.place().to_owned(),
        source,
    })
}

/// The host's end of port 0, unless that is the control channel.
fn first_port(parts: Parts<'_>) -> Result<Option<HostPort>, VmError> {
    Ok(match &parts.spec.hvc {
        HvcMode::Channel => None,
        HvcMode::Terminal => {
            let screen = parts.screen.clone();
            let port = HostPort::on_screen(FIRST, screen);
            Some(port.map_err(VmError::host("create event descriptors"))?)
        }
        HvcMode::Discard => Some(HostPort::nowhere(FIRST)),
        HvcMode::End(end) => Some(open(FIRST, end, "--hvc")?),
    })
}

impl MachineDevice for ConsoleDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn start(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        for (source, port) in (0..).zip(self.ports().iter()) {
            port.start(source, on);
        }
        Ok(())
    }

    fn ready(&self, source: u32, _: EventSet, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        for (own, port) in (0..).zip(self.ports().iter_mut()) {
            if own == source {
                let mut of = PortOf(&self.shell, port.number);
                port.ready(source, &mut of, on);
            }
        }
        Ok(())
    }

    fn after_queue(&self, queue: u16, _: bool, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        if queue == QUEUE_RECEIVE && self.shell.look(|console| console.device().to_guest_len()) == 0 {
            self.tell_of_room();
        }
        for port in self.ports().iter_mut() {
            let mut of = PortOf(&self.shell, port.number);
            port.move_bytes(&mut of, on);
        }
        self.hear_channel(on.machine);
        Ok(())
    }

    fn drain(&self, machine: &Shared) -> Result<(), VmError> {
        // Nothing waits for those that have gone any more.
        self.take_written(machine).map(drop)
    }

    fn reset(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        for gone in self.take_written(on.machine)? {
            on.remove_source(&gone);
        }
        self.shell.reset();
        // What the guest had not read is gone.
        self.tell_of_room();
        Ok(())
    }
}

/// A port of the device behind a shell.
struct PortOf<'a>(&'a VirtioShell<Console>, usize);

impl DevicePort for PortOf<'_> {
    fn room(&self) -> usize {
        let state = self.0.look(|console| console.device().port(self.1));
        state.map_or(0, |port| TO_GUEST_LIMIT - port.to_guest_len)
    }

    fn waiting(&self) -> usize {
        let state = self.0.look(|console| console.device().port(self.1));
        state.map_or(0, |port| port.from_guest_len)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.change(|console| {
            let (_, effects) = console.push_to_port(self.1, bytes);
            ((), effects)
        });
    }

    fn take(&mut self, max: usize) -> Vec<u8> {
        self.0.change(|console| console.take_from_port(self.1, max))
    }

    fn set_open(&mut self, open: bool) {
        self.0.change(|console| ((), console.set_host_open(self.1, open)));
    }
}

impl InputLine for ConsoleDevice {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.shell.change(|console| console.push_to_guest(bytes))
    }

    fn room(&self) -> &EventFd {
        &self.typed_room
    }
}

impl GuestPort for ConsoleDevice {
    /// While the driver starts the device again, what is sent waits for it.
    fn is_open(&self) -> bool {
        let is_there = |console: &MmioTransport<Console>| console.is_live() || console.is_restarting();
        self.first == HvcMode::Channel && self.shell.look(is_there)
    }

    fn send(&self, bytes: &[u8]) -> bool {
        self.shell.change(|console| {
            if TO_GUEST_LIMIT - console.device().to_guest_len() < bytes.len() {
                return (false, Effects::NONE);
            }
            let (accepted, effects) = console.push_to_guest(bytes);
            (accepted == bytes.len(), effects)
        })
    }
}
