//! A disk (virtio-blk) and the file or block device behind it.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::block::{Block, DiskAccess};
use devices::rate::RateSpec;
use event_manager::EventSet;
use virtio_wire::block::SECTOR_SIZE;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet as EpollEvents};
use vmm_sys_util::eventfd::EventFd;

use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::{DiskReport, VmStatus};
use crate::disk::{EngineKind, HostDisk};
use crate::machine::VmError;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::spec::DiskSpec;

/// The host may have finished operations.
const FINISHED: u32 = 0;
/// Operations that the limit of the disk's rate has put off may begin.
const TIME: u32 = 1;

/// One disk.
#[derive(Debug)]
pub(in super::super) struct BlockDevice {
    shell: Arc<VirtioShell<Block<HostDisk>>>,
    path: String,
    engine: EngineKind,
    /// Readable when the host may have finished operations.
    finished: EventFd,
    timer: Timer,
}

/// The disk's timer, which the disk in the shell keeps open.
#[derive(Debug, Clone, Copy)]
struct Timer(RawFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl BlockDevice {
    /// The disks of a machine, in the order of its specification.
    ///
    /// # Errors
    /// A disk cannot be opened, or no descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Vec<Arc<Self>>, VmError> {
        let specs = parts.spec.disks.iter();
        specs.map(|spec| Self::new(parts, spec).map(Arc::new)).collect()
    }

    fn new(parts: Parts<'_>, spec: &DiskSpec) -> Result<Self, VmError> {
        let memory = parts.ram.device_view();
        let disk = HostDisk::open(spec, memory.clone())?;
        let descriptors = || VmError::host("create event descriptors");
        let (engine, limits) = (disk.engine(), disk.limits());
        let finished = disk.event().map_err(descriptors())?;
        let timer = Timer(disk.timer());
        let shell = VirtioShell::new(Block::new(disk, limits, spec.id), memory.clone());
        Ok(Self {
            shell: Arc::new(shell.map_err(descriptors())?),
            path: spec.path.display().to_string(),
            engine,
            finished,
            timer,
        })
    }

    /// Changes what the disk may do in a second, from what it is now. What waits is looked at again. Returns whether it is new.
    pub(in super::super) fn change_rate(&self, change: impl FnOnce(RateSpec) -> RateSpec) -> bool {
        self.shell.change(|transport| {
            transport.change_disk(|disk| {
                let (old, new) = (disk.rate(), change(disk.rate()));
                disk.set_rate(new);
                old != new
            })
        })
    }
}

impl MachineDevice for BlockDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn start(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        on.add_source(&self.finished, FINISHED, EventSet::IN);
        on.add_source(&self.timer, TIME, EventSet::IN);
        Ok(())
    }

    fn ready(&self, source: u32, _: EventSet, _: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        if source == TIME {
            self.shell
                .change(|transport| transport.change_disk(HostDisk::time_has_come));
            return Ok(());
        }
        // Read before the disk is asked: what finishes from now on makes it readable again.
        let _ = self.finished.read();
        self.shell
            .work(|transport, memory| transport.finish_requests(memory))?;
        Ok(())
    }

    /// What the host has begun reads and writes guest memory: it ends first, and the guest before never hears of it.
    fn reset(&self, _: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        self.shell.reset();
        let wait = || VmError::host("wait for a disk");
        let finished = Epoll::new().map_err(wait())?;
        let readable = EpollEvent::new(EpollEvents::IN, 0);
        finished
            .ctl(ControlOperation::Add, self.finished.as_raw_fd(), readable)
            .map_err(wait())?;
        while self.shell.look(|transport| transport.device().in_flight()) > 0 {
            match finished.wait(-1, &mut [EpollEvent::default()]) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(wait()(error)),
                _ => {}
            }
            let _ = self.finished.read();
            self.shell
                .work(|transport, memory| transport.finish_requests(memory))?;
        }
        // The reset that has just come to its end may have left an edge behind.
        self.shell.reset();
        Ok(())
    }

    fn report(&self, status: &mut VmStatus) {
        let report = self.shell.look(|transport| {
            let (block, counters) = (transport.device(), transport.device().counters());
            DiskReport {
                path: self.path.clone(),
                engine: self.engine.to_string(),
                read_only: block.limits().access == DiskAccess::ReadOnly,
                capacity_bytes: block.limits().capacity_sectors * SECTOR_SIZE,
                reads: counters.reads,
                read_bytes: counters.read_bytes,
                writes: counters.writes,
                written_bytes: counters.written_bytes,
                flushes: counters.flushes,
                discards: counters.discards,
                write_zeroes: counters.write_zeroes,
                refused: counters.refused,
                failed: counters.failed,
                in_flight: block.in_flight() as u64,
                throttled: counters.throttled,
                rate_limiter: block.disk().rate().into(),
            }
        });
        status.disks.push(report);
    }
}
