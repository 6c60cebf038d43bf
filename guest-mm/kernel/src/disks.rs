//! The disks of this machine: what is said of them, and the task that each has.
//!
//! A disk is found by its name, as a [`Drive`] that every CPU can ask. Its task, on the boot CPU, hands what is asked to the driver, as much
//! at a time as that takes, gives the results back, and starts a disk again that has broken down.

mod check;
mod rate;

pub(crate) use check::check;
pub(crate) use rate::measure;

use crate::devices::{Disk, restart};
use crate::drivers::Driver;
use crate::kernel::Kernel;
use crate::log::log;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use check::Check;
use core::fmt::{self, Write};
use guest_kernel::control_tree::Device;
use guest_kernel::drive::{Drive, Job};
use guest_kernel::relocation::NotMoved;
use guest_kernel::sync::{Winner, race};
use guest_virtio::block::{Access, BlockError, Counters, DiskInfo, Reason, SECTOR_SIZE};

/// What is known of one disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskStatus {
    drive: &'static Drive,
    info: DiskInfo,
    counters: Counters,
    in_flight: u16,
    broken: bool,
    check: Check,
    /// Whose it is: `root=` or `swap=`.
    owner: Option<&'static str>,
}

/// The name of a disk, by its number: as Linux calls it.
pub(crate) fn name(index: usize) -> String {
    device(index).to_string()
}

/// The disk of that number, as a device. More than 26 do not fit into the machine.
pub(crate) fn device(index: usize) -> Device {
    Device::Disk(u8::try_from(index).unwrap_or(u8::MAX))
}

/// The disk of that name, if there is one, with its number. Disks are found before programs are started, and stay.
pub(crate) fn find(kernel: &Kernel, wanted: &str) -> Option<(usize, &'static Drive)> {
    let disks = kernel.disks.lock();
    let at = (0..disks.len()).find(|&index| name(index) == wanted)?;
    disks.get(at).map(|disk| (at, disk.drive))
}

/// Gives a disk to an owner, for good. Whoever has it, if that is somebody already.
pub(crate) fn claim(kernel: &Kernel, index: usize, owner: &'static str) -> Result<(), &'static str> {
    let mut disks = kernel.disks.lock();
    match disks.get_mut(index) {
        Some(disk) => match disk.owner {
            Some(known) => Err(known),
            None => {
                disk.owner = Some(owner);
                Ok(())
            }
        },
        None => Ok(()),
    }
}

/// Takes note of another disk; returns its number, and what others ask.
pub(crate) fn add(kernel: &Kernel, disk: &Disk) -> (usize, &'static Drive) {
    let drive: &'static Drive = Box::leak(Box::new(Drive::new(disk.info())));
    let mut disks = kernel.disks.lock();
    disks.push(DiskStatus {
        drive,
        info: disk.info(),
        counters: disk.counters(),
        in_flight: 0,
        broken: false,
        check: Check::None,
        owner: None,
    });
    (disks.len() - 1, drive)
}

/// The disk's task: does what is asked of it, for ever.
pub(crate) async fn serve(
    kernel: &'static Kernel,
    disk: &'static Disk,
    driver: &'static Driver,
    (index, drive): (usize, &'static Drive),
) {
    let relocation = &driver.relocation;
    loop {
        let (asked, wishes) = (drive.asked(), relocation.asked());
        if relocation.is_wanted() {
            move_memory(disk, drive, driver);
        }
        if !relocation.is_wanted() {
            hand_over(disk, drive);
        }
        publish(kernel, disk, index);
        let more = race(drive.asked_after(asked), relocation.asked_after(wishes));
        match race(disk.next(), race(more, disk.broken_down())).await {
            Winner::First((job, result)) => {
                end(drive, job, result);
                take_back(disk, drive);
            }
            Winner::Second(Winner::First(_)) => {}
            Winner::Second(Winner::Second(fault)) => {
                log!(Error, "{}: {fault}", name(index));
                publish(kernel, disk, index);
                start_again(kernel, disk, driver, drive).await;
            }
        }
    }
}

/// Has the driver share other memory with the disk, if nothing is under way.
fn move_memory(disk: &Disk, drive: &Drive, driver: &Driver) {
    take_back(disk, drive);
    if disk.in_flight() == 0 {
        let moved = disk.relocate().map_err(|_| NotMoved);
        driver.has_memory(disk.shared_memory());
        driver.relocation.end(moved);
    }
}

/// Whose the disk of `root=` is.
pub(crate) const ROOT: &str = "the root file system";

/// The name of the disk that is mounted.
pub(crate) fn name_of_root(kernel: &Kernel) -> Option<String> {
    let disks = kernel.disks.lock();
    disks.iter().position(|disk| disk.owner == Some(ROOT)).map(name)
}

/// Hands over what is asked, as far as the driver has room. What it refuses fails.
fn hand_over(disk: &Disk, drive: &Drive) {
    let info = disk.info();
    while let Some(mut job) = drive.next_job() {
        let Some(piece) = job.next_piece(&info) else {
            job.fail();
            continue;
        };
        let Err(refused) = disk.submit(piece.operation, piece.sector, &piece.data, job) else {
            continue;
        };
        match refused.reason {
            Reason::Full | Reason::Broken(_) => {
                drive.put_back(refused.token);
                break;
            }
            Reason::OutOfRange | Reason::TooLarge | Reason::ReadOnly => refused.token.fail(),
        }
    }
    disk.commit();
}

/// Takes back all that the driver is done with.
fn take_back(disk: &Disk, drive: &Drive) {
    while let Some((job, result)) = disk.completed() {
        end(drive, job, result);
    }
}

fn end(drive: &Drive, job: Job, result: Result<(), BlockError>) {
    if let Some(rest) = job.end_piece(result) {
        drive.put_back(rest);
    }
}

/// Starts a disk again that has broken down. What it had under way is asked of it again; as long as it does not start, what is asked
/// of it fails.
async fn start_again(
    kernel: &'static Kernel,
    disk: &'static Disk,
    driver: &'static Driver,
    drive: &'static Drive,
) {
    restart(kernel, || {
        let restarted = disk.restart();
        take_back(disk, drive);
        match restarted {
            Ok(()) => drive.restarted(disk.info()),
            Err(_) => {
                drive.fail_all();
                driver.relocation.end(Err(NotMoved));
            }
        }
        restarted
    })
    .await;
}

/// Takes the newest counters over.
fn publish(kernel: &Kernel, disk: &Disk, index: usize) {
    if let Some(status) = kernel.disks.lock().get_mut(index) {
        status.info = disk.info();
        status.counters = disk.counters();
        status.in_flight = disk.in_flight();
        status.broken = disk.fault().is_some();
    }
}

/// What there is to say of all disks.
pub(crate) fn report(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(
        out,
        "DISK STATE ACCESS BYTES IN_FLIGHT READS READ_BYTES WRITES WRITTEN_BYTES FLUSHES ERRORS CHECK CHECKED_BYTES WRONG_BYTES"
    )?;
    for (index, disk) in kernel.disks.lock().iter().enumerate() {
        let state = if disk.broken { "broken" } else { "ready" };
        let access = match disk.info.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        };
        let (word, findings) = disk.check.in_words();
        let counters = disk.counters;
        writeln!(
            out,
            "{} {state} {access} {} {} {} {} {} {} {} {} {word} {} {}",
            name(index),
            disk.info.capacity_sectors.saturating_mul(SECTOR_SIZE),
            disk.in_flight,
            counters.reads,
            counters.read_bytes,
            counters.writes,
            counters.written_bytes,
            counters.flushes,
            counters.errors,
            findings.checked,
            findings.wrong,
        )?;
    }
    Ok(())
}
