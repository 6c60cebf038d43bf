//! The virtio devices of a machine: one file for each kind, one list of all.
//!
//! A device is a pure state machine of the `devices` package in a [`VirtioShell`](super::virtio::VirtioShell), and a
//! [`MachineDevice`] that says what the host does for it: after a queue was processed, when a host descriptor is ready,
//! and in reports. To add a kind: its file here, and its line in [`DeviceList::new`].
//!
//! All of a [`MachineDevice`]'s work on guest memory happens on the event loop, which is also where blocks are
//! unplugged.

mod balloon;
mod block;
mod console;
mod console_ports;
mod memory;
mod net;
mod on_loop;
mod rng;
mod vsock;
mod watched;

pub(super) use balloon::BalloonDevice;
pub use balloon::BalloonError;
pub(super) use block::BlockDevice;
pub(super) use console::ConsoleDevice;
pub(super) use memory::MemoryDevice;
pub(super) use on_loop::{DeviceEvent, OnLoop};

use std::fmt;
use std::sync::Arc;

use event_manager::EventSet;

use super::VmError;
use super::layout::VIRTIO_MMIO_MAX;
use super::shared::Shared;
use super::virtio::Shell;
use crate::control::report::VmStatus;
use crate::hv::{HvError, Partition};
use crate::journal::Events;
use crate::memory::GuestRam;
use crate::spec::VmSpec;
use crate::terminal::OutputWriter;
use net::NetDevice;
use rng::RngDevice;
use vsock::VsockDevice;

/// One virtio device and what the host does for it. All hooks but the last are called on the event loop only.
pub(super) trait MachineDevice: fmt::Debug + Send + Sync {
    /// What connects it to the guest.
    fn shell(&self) -> Arc<dyn Shell>;

    /// The event loop begins: the place to add the host descriptors that the device waits for
    /// ([`OnLoop::add_source`]).
    ///
    /// # Errors
    /// The host failed; the machine ends.
    fn start(&self, _on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        Ok(())
    }

    /// The shell has processed `queue`; `config_changed` tells whether the configuration space changed by it.
    ///
    /// # Errors
    /// The host failed; the machine ends.
    fn after_queue(
        &self,
        _queue: u16,
        _config_changed: bool,
        _on: &mut OnLoop<'_, '_>,
    ) -> Result<(), VmError> {
        Ok(())
    }

    /// A descriptor that the device has added as `source` is ready for `events`.
    ///
    /// # Errors
    /// The host failed; the machine ends.
    fn ready(&self, _source: u32, _events: EventSet, _on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        Ok(())
    }

    /// The guest ends or resets its machine, and no notification of it is heard any more: takes what it has handed over
    /// before, as far as somebody may wait for it. Takes one turn and waits for nobody.
    ///
    /// # Errors
    /// The host failed.
    fn drain(&self, _machine: &Shared) -> Result<(), VmError> {
        Ok(())
    }

    /// The machine is being reset: no vCPU runs, and the next guest finds the device as at power-on. When this returns, the
    /// device uses none of the guest's memory any more.
    ///
    /// # Errors
    /// The host failed; the machine ends.
    fn reset(&self, _on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        self.shell().reset();
        Ok(())
    }

    /// Writes what it has to say into `status`, whose sums it adds to.
    fn report(&self, _status: &mut VmStatus) {}
}

/// What devices are made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) spec: &'a VmSpec,
    pub(super) ram: &'a Arc<GuestRam>,
    pub(super) events: &'a Events,
    /// What the user at standard input sees.
    pub(super) screen: &'a OutputWriter,
}

/// All virtio devices, in the order of their windows and lines.
#[derive(Debug)]
pub(super) struct DeviceList {
    all: Vec<Arc<dyn MachineDevice>>,
    /// The memory devices, in the order of their regions.
    pub(super) memory: Vec<Arc<MemoryDevice>>,
    /// The console.
    pub(super) console: Arc<ConsoleDevice>,
    /// The balloon, if there is one.
    pub(super) balloon: Option<Arc<BalloonDevice>>,
    /// The disks, in order.
    pub(super) disks: Vec<Arc<BlockDevice>>,
    /// The network interfaces, in order.
    pub(super) net: Vec<Arc<NetDevice>>,
}

impl DeviceList {
    /// Makes the devices that the specification asks for.
    ///
    /// # Errors
    /// The host lacks what a device needs, or there are more devices than lines.
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, VmError> {
        let mut all: Vec<Arc<dyn MachineDevice>> = Vec::new();
        let memory = MemoryDevice::of(parts)?;
        all.extend(memory.iter().map(|device| Arc::clone(device) as _));
        let console = Arc::new(ConsoleDevice::new(parts)?);
        all.push(Arc::clone(&console) as _);
        let balloon = BalloonDevice::of(parts)?.map(Arc::new);
        all.extend(balloon.iter().map(|device| Arc::clone(device) as _));
        let disks = BlockDevice::of(parts)?;
        all.extend(disks.iter().map(|device| Arc::clone(device) as _));
        let net: Vec<_> = NetDevice::of(parts)?.into_iter().map(Arc::new).collect();
        all.extend(net.iter().map(|device| Arc::clone(device) as _));
        all.extend(VsockDevice::of(parts)?.map(|device| Arc::new(device) as _));
        all.extend(RngDevice::of(parts)?.map(|device| device as _));
        if all.len() > VIRTIO_MMIO_MAX as usize {
            return Err(VmError::TooManyDevices { count: all.len() });
        }
        Ok(Self {
            all,
            memory,
            console,
            balloon,
            disks,
            net,
        })
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<dyn MachineDevice>> {
        self.all.iter()
    }

    /// How many there are, at most [`VIRTIO_MMIO_MAX`].
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.all.len()).expect("checked in `new` to be at most 19")
    }

    /// Connects each with its window and line.
    ///
    /// # Errors
    /// KVM refuses a line.
    pub(super) fn connect(&self, partition: &Partition) -> Result<(), HvError> {
        (0..)
            .zip(&self.all)
            .try_for_each(|(index, device)| device.shell().connect(partition, index))
    }
}
