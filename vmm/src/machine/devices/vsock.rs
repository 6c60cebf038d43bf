//! The socket device: streams of the guest that end at unix sockets of the host ([`crate::vsock`]).

use std::sync::{Arc, Mutex, PoisonError};

use devices::mmio::Effects;
use devices::vsock::Vsock;
use event_manager::EventSet;

use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::{VmStatus, VsockReport};
use crate::machine::VmError;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::spec::VsockSpec;
use crate::vsock::{Caller, Change, Changes, Door, UnixHost};

/// The only source of events that it has.
const CHANGES: u32 = 0;

/// The socket device. Lock order: the door's lock, then the shell's.
#[derive(Debug)]
pub(super) struct VsockDevice {
    shell: Arc<VirtioShell<Vsock<UnixHost>>>,
    changes: Changes,
    door: Mutex<Door>,
}

impl VsockDevice {
    /// The socket device of a machine, if it has one.
    ///
    /// # Errors
    /// The socket cannot be had, or no descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Option<Self>, VmError> {
        parts
            .spec
            .vsock
            .as_ref()
            .map(|spec| Self::new(parts, spec))
            .transpose()
    }

    fn new(parts: Parts<'_>, spec: &VsockSpec) -> Result<Self, VmError> {
        let changes = Changes::new().map_err(VmError::host("create event descriptors"))?;
        let door = Door::open(&spec.path, &changes).map_err(|source| VmError::Socket {
            option: "--vsock",
            path: spec.path.clone(),
            source,
        })?;
        let device = Vsock::new(spec.cid, UnixHost::new(&spec.path, &changes));
        let shell = VirtioShell::new(device, parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Self {
            shell: Arc::new(shell),
            changes,
            door: Mutex::new(door),
        })
    }

    fn see_to(&self, change: Change) {
        match change {
            Change::Stream(key, readiness) => self
                .shell
                .change(|vsock| ((), vsock.stream_ready(key, readiness))),
            Change::Door(number) => {
                let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(caller) = door.look(number) {
                    self.open(caller);
                }
            }
        }
    }

    fn open(&self, caller: Caller) {
        self.shell.change(|vsock| {
            let port = caller.port;
            match vsock.open_stream(port, |key| caller.into_stream(key)) {
                Ok(effects) => ((), effects),
                Err(error) => {
                    // The caller finds its socket closed.
                    tracing::warn!(port, error = %error, "no stream to the guest");
                    ((), Effects::NONE)
                }
            }
        });
    }
}

impl MachineDevice for VsockDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn start(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        on.add_source(&self.changes, CHANGES, EventSet::IN);
        Ok(())
    }

    fn ready(&self, _: u32, _: EventSet, _: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        let changes = self.changes.take().map_err(VmError::host("wait for sockets"))?;
        changes.into_iter().for_each(|change| self.see_to(change));
        Ok(())
    }

    fn report(&self, status: &mut VmStatus) {
        status.vsock = Some(self.shell.look(|vsock| {
            let (device, counters) = (vsock.device(), vsock.device().counters());
            VsockReport {
                driver_ready: vsock.is_live(),
                cid: device.cid().get(),
                streams: device.streams() as u64,
                streams_from_guest: counters.from_guest,
                streams_from_host: counters.from_host,
                refused: counters.refused,
                breaches: counters.breaches,
                bytes_from_guest: counters.bytes_from_guest,
                bytes_to_guest: counters.bytes_to_guest,
            }
        }));
    }
}
