//! A network device at a tap ([`crate::net`]).

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::net::{LinkState, Net};
use event_manager::EventSet;

use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::{NetReport, VmStatus};
use crate::machine::VmError;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::net::Tap;
use crate::spec::NetSpec;

/// The only source of events that it has.
const FRAMES: u32 = 0;

/// One network device.
#[derive(Debug)]
pub(in super::super) struct NetDevice {
    shell: Arc<VirtioShell<Net<Tap>>>,
    tap: TapDescriptor,
    spec: NetSpec,
}

/// The tap's descriptor, which the device in the shell keeps open.
#[derive(Debug, Clone, Copy)]
struct TapDescriptor(RawFd);

impl AsRawFd for TapDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl NetDevice {
    /// The network devices of a machine.
    ///
    /// # Errors
    /// A tap cannot be had, or no descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Vec<Self>, VmError> {
        parts.spec.net.iter().map(|spec| Self::new(parts, spec)).collect()
    }

    fn new(parts: Parts<'_>, spec: &NetSpec) -> Result<Self, VmError> {
        let tap = Tap::open(&spec.tap).map_err(|source| VmError::Tap {
            name: spec.tap.to_string(),
            source,
        })?;
        let descriptor = TapDescriptor(tap.as_raw_fd());
        let shell = VirtioShell::new(Net::new(spec.mac, tap), parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Self {
            shell: Arc::new(shell),
            tap: descriptor,
            spec: spec.clone(),
        })
    }
}

impl NetDevice {
    /// Plugs the wire in or out, and tells the driver. Returns whether that is new.
    pub(in super::super) fn set_link(&self, link: LinkState) -> bool {
        self.shell.change(|net| {
            let is_new = net.device().link() != link;
            (is_new, net.set_link(link))
        })
    }
}

impl MachineDevice for NetDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn start(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        // Each arrival is told of once: frames that the guest has no buffers for do not keep the loop busy.
        on.add_source(&self.tap, FRAMES, EventSet::IN | EventSet::EDGE_TRIGGERED);
        Ok(())
    }

    fn ready(&self, _: u32, _: EventSet, _: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        self.shell.change(|net| ((), net.packets_waiting()));
        Ok(())
    }

    fn report(&self, status: &mut VmStatus) {
        let report = self.shell.look(|net| {
            let (device, counters) = (net.device(), net.device().counters());
            NetReport {
                tap: self.spec.tap.to_string(),
                mac: device.mac().to_string(),
                driver_ready: net.is_live(),
                link_up: device.link() == LinkState::Up,
                frames_from_guest: counters.frames_from_guest,
                bytes_from_guest: counters.bytes_from_guest,
                frames_to_guest: counters.frames_to_guest,
                bytes_to_guest: counters.bytes_to_guest,
                lost_from_guest: counters.lost_from_guest,
                lost_to_guest: counters.lost_to_guest,
            }
        });
        status.net.push(report);
    }
}
