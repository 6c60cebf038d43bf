//! A memory device (virtio-mem) and the hot-plug region whose blocks it plugs and unplugs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::mem::{MemDevice, RegionSpec, ResizeError, UnpluggedMemory};
use devices::mmio::Effects;

use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::VmStatus;
use crate::machine::VmError;
use crate::machine::progress::{Refusals, Standing};
use crate::machine::virtio::{Shell, VirtioShell};
use crate::memory::{Region, RegionBackend};
use crate::spec::HotplugSpec;

/// One memory device.
#[derive(Debug)]
pub(in super::super) struct MemoryDevice {
    shell: Arc<VirtioShell<MemDevice<RegionBackend>>>,
    /// Bytes of its blocks given back to the host so far.
    discarded: Arc<AtomicU64>,
}

impl MemoryDevice {
    /// The memory devices of a machine, one for each of its regions.
    ///
    /// # Errors
    /// A region cannot be as it was asked for, or no descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Vec<Arc<Self>>, VmError> {
        let regions = parts.spec.hotplug.iter().zip(parts.ram.region());
        regions
            .zip(parts.ram.backend())
            .map(|((hotplug, region), backend)| Self::new(parts, hotplug, region, backend).map(Arc::new))
            .collect()
    }

    fn new(
        parts: Parts<'_>,
        hotplug: &HotplugSpec,
        region: &Region,
        backend: RegionBackend,
    ) -> Result<Self, VmError> {
        let discarded = backend.discarded_bytes();
        let layout = region.layout();
        let spec = RegionSpec {
            addr: layout.start,
            region_size: layout.size,
            block_size: layout.block_size,
            requested_size: hotplug.requested_size,
            node_id: (!parts.spec.nodes.is_empty()).then(|| hotplug.node.into()),
            unplugged: UnpluggedMemory::Inaccessible,
        };
        let device = MemDevice::new(&spec, backend)?;
        let shell = VirtioShell::new(device, parts.ram.device_view().clone());
        let shell = shell.map_err(VmError::host("create event descriptors"))?;
        Ok(Self {
            shell: Arc::new(shell),
            discarded,
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

    /// How things stand with it.
    pub(in super::super) fn standing(&self) -> Standing {
        self.shell.look(|memory| {
            let counters = memory.device().counters();
            Standing {
                balloon: None,
                requested_size: memory.device().requested_size(),
                plugged_size: memory.device().plugged_size(),
                driver_ready: memory.is_live(),
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

    fn report(&self, status: &mut VmStatus) {
        self.shell.look(|memory| {
            let (config, counters) = (memory.device().config(), memory.device().counters());
            status.region_size += config.region_size;
            status.block_size = config.block_size;
            status.usable_region_size += config.usable_region_size;
            status.requested_size += config.requested_size;
            status.plugged_size += config.plugged_size;
            status.total_requested += config.requested_size;
            status.total_plugged += config.plugged_size;
            status.driver_ready = memory.is_live();
            status.plug_requests += counters.plug_requests;
            status.unplug_requests += counters.unplug_requests + counters.unplug_all_requests;
            status.nacks += counters.nacks;
            status.busy += counters.busies;
            status.errors += counters.errors;
        });
        status.discarded_bytes += self.discarded.load(Ordering::Relaxed);
    }
}
