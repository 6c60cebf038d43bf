//! A memory device (virtio-mem) and the hot-plug region whose blocks it plugs and unplugs.

use std::sync::Arc;

use devices::mem::{MemDevice, RegionSpec, ResizeError};
use devices::mmio::Effects;

use super::watched::Watched;
use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::{RegionReport, VmStatus};
use crate::machine::VmError;
use crate::machine::progress::{Refusals, Standing};
use crate::machine::split::Share;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::memory::{Region, RegionBackend};
use crate::spec::{HotplugSpec, PageSupply};

/// One memory device.
#[derive(Debug)]
pub(in super::super) struct MemoryDevice {
    shell: Arc<VirtioShell<MemDevice<Watched<RegionBackend>>>>,
    region: Arc<Region>,
    /// The node that the guest is told of, if it is told of any.
    node: Option<u8>,
}

impl MemoryDevice {
    /// The memory devices of a machine, one for each of its regions.
    ///
    /// # Errors
    /// A region cannot be as it was asked for, or no descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Vec<Arc<Self>>, VmError> {
        let backends = (0..).map_while(|index| parts.ram.backend(index));
        let regions = parts.spec.hotplug.iter().zip(backends);
        regions
            .enumerate()
            .map(|(index, (hotplug, backend))| Self::new(parts, hotplug, backend, index).map(Arc::new))
            .collect()
    }

    fn new(
        parts: Parts<'_>,
        hotplug: &HotplugSpec,
        backend: RegionBackend,
        index: usize,
    ) -> Result<Self, VmError> {
        let region = Arc::clone(backend.region());
        let backend = Watched::new(backend, parts.events.clone(), index, region.layout());
        let node = (!parts.spec.nodes.is_empty()).then_some(hotplug.node);
        let layout = region.layout();
        let spec = RegionSpec {
            addr: layout.start,
            region_size: layout.size,
            block_size: layout.block_size,
            requested_size: hotplug.requested_size,
            node_id: node.map(Into::into),
            unplugged: hotplug.unplugged,
        };
        let device = MemDevice::new(&spec, backend)?;
        let shell = VirtioShell::new(device, parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Self {
            shell: Arc::new(shell),
            region,
            node,
        })
    }

    /// Asks the guest to have `bytes` of the region.
    ///
    /// # Errors
    /// The region cannot have that size.
    pub(in super::super) fn request(&self, bytes: u64) -> Result<(), ResizeError> {
        self.shell
            .change(|memory| match memory.set_requested_size(bytes) {
                Ok(effects) => (Ok(()), effects),
                Err(error) => (Err(error), Effects::NONE),
            })
    }

    /// Its part in a resize.
    pub(in super::super) fn share(&self) -> Share {
        let config = self.shell.look(|memory| memory.device().config());
        Share {
            size: config.region_size,
            block_size: config.block_size,
            requested: config.requested_size,
        }
    }

    /// How things stand with it.
    pub(in super::super) fn standing(&self) -> Standing {
        self.shell.look(|memory| {
            let counters = memory.device().counters();
            let (requested_size, plugged_size) =
                (memory.device().requested_size(), memory.device().plugged_size());
            Standing {
                balloon: None,
                requested_size,
                plugged_size,
                // A device that has nothing to do misses no driver.
                driver_ready: memory.is_live() || requested_size == plugged_size,
                held: false,
                requests: counters.plug_requests
                    + counters.unplug_requests
                    + counters.unplug_all_requests
                    + counters.state_requests
                    + counters.unknown_requests,
                refusals: Refusals {
                    nacks: counters.nacks,
                    busy: counters.busies,
                    errors: counters.errors,
                },
            }
        })
    }
}

impl MachineDevice for MemoryDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn after_queue(&self, _: u16, config_changed: bool, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        if config_changed {
            on.machine.blocks_moved();
        }
        Ok(())
    }

    /// All blocks are unplugged; what is requested stays, and the next guest is asked for it.
    fn reset(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        let left = self.shell.change(|memory| match memory.reset_machine() {
            Ok(left) => (Ok(left), Effects::NONE),
            Err(error) => (Err(error), Effects::NONE),
        })?;
        if left > 0 {
            tracing::warn!("{left} bytes stay plugged over a reboot: the host is too busy to take them");
        }
        self.shell.reset();
        on.machine.pursue_target();
        on.machine.resize_begins(|| {});
        Ok(())
    }

    fn report(&self, status: &mut VmStatus) {
        let region = self.shell.look(|memory| {
            let (config, counters) = (memory.device().config(), memory.device().counters());
            RegionReport {
                start: config.addr,
                region_size: config.region_size,
                block_size: config.block_size,
                usable_region_size: config.usable_region_size,
                requested_size: config.requested_size,
                plugged_size: config.plugged_size,
                driver_ready: memory.is_live(),
                plug_requests: counters.plug_requests,
                unplug_requests: counters.unplug_requests + counters.unplug_all_requests,
                nacks: counters.nacks,
                busy: counters.busies,
                errors: counters.errors,
                ..RegionReport::default()
            }
        });
        let account = self.region.account();
        status.add(RegionReport {
            node: self.node,
            backing: self.region.backing().to_string(),
            populate: self.region.pages() == PageSupply::AtPlug,
            pinned_blocks: self.region.pinned_blocks(),
            busy_pinned: account.busy_pinned,
            busy_memory: account.busy_memory,
            discarded_bytes: account.discarded.claimed,
            shown_free_bytes: account.discarded.shown,
            ..region
        });
    }
}
