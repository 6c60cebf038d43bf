//! The balloon's worker: takes free pages away from everybody when the host wants them, and gives them back when it does
//! not. And the task that tells the host how memory is used, when it asks.
//!
//! Only boot memory goes into the balloon, as unmovable pages: a block that is to be unplugged never has one in it. The
//! balloon leaves the zones above their low watermarks, so that it takes no program's last page.

use crate::devices::{Balloon, restart};
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use alloc::vec::Vec;
use guest_kernel::sync::race;
use guest_mm::{Gfp, Order, PAGE_SIZE, Pfn};
use guest_virtio::DeviceFault;
use guest_virtio::balloon::{PAGES_AT_ONCE, Stat, StatTag};

/// How long to wait for memory, at most, before looking again.
const PAUSE_NS: u64 = 500_000_000;

/// What could be done without just now, for the kernel's own use: unmovable, and never below a low watermark.
const SPARE: Gfp = Gfp::SPARE.without(Gfp::USER);

/// Follows the host's wishes for as long as the guest runs.
pub(crate) async fn work(kernel: &'static Kernel, device: &'static Balloon) {
    let mut held = Vec::new();
    loop {
        if let Err(fault) = follow(kernel, device, &mut held).await {
            log!(Error, "balloon: {fault}");
            restart(kernel, || device.restart()).await;
            // The device has forgotten what was in it.
            give_back(kernel, &held);
            held.clear();
            publish(kernel, |status| status.held = 0);
        }
    }
}

/// Moves pages until the device breaks down.
async fn follow(
    kernel: &'static Kernel,
    device: &'static Balloon,
    held: &mut Vec<Pfn>,
) -> Result<(), DeviceFault> {
    loop {
        if device.has_been_forgotten() {
            tell_again(device, held).await?;
        }
        let memory_seen = kernel.memory_came.count();
        let Ok(target) = device.target() else {
            kernel.timers().sleep(PAUSE_NS).await;
            continue;
        };
        let wanted = usize::try_from(target).unwrap_or(usize::MAX);
        publish(kernel, |status| status.target = target.into());
        if held.len() < wanted {
            let moved = inflate(kernel, device, held, wanted - held.len()).await?;
            publish(kernel, |status| status.stalled = moved == 0);
            if moved == 0 {
                let luck = race(
                    kernel.memory_came.after(memory_seen),
                    kernel.timers().sleep(PAUSE_NS),
                );
                race(device.config_changed(), luck).await;
            }
        } else if held.len() > wanted {
            deflate(kernel, device, held, held.len() - wanted).await?;
        } else {
            publish(kernel, |status| status.stalled = false);
            device.config_changed().await?;
        }
    }
}

/// Puts up to `count` pages into the balloon, as many as go into one request; returns how many there were.
async fn inflate(
    kernel: &Kernel,
    device: &Balloon,
    held: &mut Vec<Pfn>,
    count: usize,
) -> Result<usize, DeviceFault> {
    let free = core::iter::from_fn(|| kernel.phys.alloc_pages(this_cpu(), SPARE, Order::ZERO).ok());
    let pages: Vec<Pfn> = free.take(count.min(PAGES_AT_ONCE)).collect();
    if pages.is_empty() {
        return Ok(0);
    }
    if let Err(fault) = device.inflate(&numbers(&pages)).await {
        give_back(kernel, &pages);
        return Err(fault);
    }
    held.extend(&pages);
    publish(kernel, |status| {
        status.held = held.len() as u64;
        status.inflated += pages.len() as u64;
    });
    set_actual(device, held);
    Ok(pages.len())
}

/// Takes up to `count` pages out of the balloon, as many as go into one request.
async fn deflate(
    kernel: &Kernel,
    device: &Balloon,
    held: &mut Vec<Pfn>,
    count: usize,
) -> Result<(), DeviceFault> {
    let first = held.len() - count.min(PAGES_AT_ONCE);
    device.deflate(&numbers(&held[first..])).await?;
    let pages = held.split_off(first);
    give_back(kernel, &pages);
    publish(kernel, |status| {
        status.held = held.len() as u64;
        status.deflated += pages.len() as u64;
    });
    set_actual(device, held);
    Ok(())
}

/// Hands all pages of the balloon to the host once more: it takes the balloon for empty, as the device was reset for other memory to be shared with it.
async fn tell_again(device: &Balloon, held: &[Pfn]) -> Result<(), DeviceFault> {
    for pages in held.chunks(PAGES_AT_ONCE) {
        device.inflate(&numbers(pages)).await?;
    }
    set_actual(device, held);
    Ok(())
}

fn give_back(kernel: &Kernel, pages: &[Pfn]) {
    if let Err(error) = kernel.phys.free_bulk(this_cpu(), pages) {
        log!(Error, "balloon: {error}");
    }
    kernel.memory_came.raise();
}

fn set_actual(device: &Balloon, held: &[Pfn]) {
    device.set_actual(u32::try_from(held.len()).unwrap_or(u32::MAX));
}

/// Page numbers for the wire, which has 32 bits for each: 16 TiB, more than this guest maps.
fn numbers(pages: &[Pfn]) -> Vec<u32> {
    let number = |pfn: &Pfn| u32::try_from(pfn.gpa() / PAGE_SIZE).unwrap_or(u32::MAX);
    pages.iter().map(number).collect()
}

fn publish(kernel: &Kernel, change: impl FnOnce(&mut crate::kernel::BalloonStatus)) {
    change(&mut kernel.balloon.lock());
}

/// Tells the host how memory is used, each time it asks.
pub(crate) async fn tell(kernel: &'static Kernel, device: &'static Balloon) {
    if !device.wants_statistics() {
        return;
    }
    loop {
        // A device that broke down is started again by the other task.
        if device.supply_statistics(&statistics(kernel)).await.is_err() {
            kernel.timers().sleep(PAUSE_NS).await;
        }
    }
}

fn statistics(kernel: &Kernel) -> [Stat; 5] {
    let memory = kernel.phys.memory_stats();
    let events = kernel.phys.stats();
    let held = kernel.balloon.lock().held;
    [
        (
            StatTag::TotalMemory,
            memory.total_pages.saturating_sub(held) * PAGE_SIZE,
        ),
        (StatTag::FreeMemory, memory.free_pages * PAGE_SIZE),
        (StatTag::AvailableMemory, memory.available_pages * PAGE_SIZE),
        (StatTag::MinorFaults, events.pgfault),
        (StatTag::AllocStalls, events.allocstall),
    ]
    .map(|(tag, value)| Stat {
        tag: tag as u16,
        value,
    })
}
