//! The control channel: what the guest answers to the host's questions, one a line, over the console.

mod commands;
mod mappings;
mod node_moves;
mod refusal;
mod tree;

use crate::devices::{Console, restart};
use crate::disks;
use crate::files;
use crate::kernel::{Kernel, Memory, Passes};
use crate::log::log;
use crate::machine::{activity, heap};
use crate::memory_failure;
use crate::swap;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;
use guest_mm::slab::slabinfo;
use guest_mm::{PAGE_SIZE, report};
use guest_virtio::control::{self, Command, Handler, Reply};

const HELP: &str = "\
help          this list
meminfo       memory by use, as /proc/meminfo
zoneinfo      every zone of every node: frames, watermarks, counters, lists of CPUs, as /proc/zoneinfo
buddyinfo     free chunks of each order, as /proc/buddyinfo
pagetypeinfo  the same by migrate type, and pageblocks, as /proc/pagetypeinfo
slabinfo      objects and slabs of each cache, as /proc/slabinfo
vmallocinfo   the manager's own areas of single frames, as /proc/vmallocinfo
nodes         CPUs, memory and distances of nodes, as numactl --hardware, and requests served, as numastat
disks         every disk: size, requests, and what a check of a scratch disk has found
balloon       pages in the balloon, wanted in it, and moved since boot
blocks        every block of the hot-plug region: state, zone, free and used pages
ps            every program: state, memory, checks of its own data, faults, CPU
maps          maps PID: a program's areas, as /proc/PID/maps
smaps         smaps PID: the same with what each has in memory, as /proc/PID/smaps
lru           the lists of pages of each zone: anonymous ones, files', dirty, on their way to the disk
cache         files and shared memory in the page cache: pages, dirty, on their way to the disk, swapped
pagemap       pagemap PID ADDRESS [PAGES]: what a program has there: the frame, or swapped, poisoned, migrating
frame         frame PFN [FRAMES]: what is known of a page frame and those behind it: state, references, mappings, block, flags or owner
poison        poison PFN [soft|hard]: takes a failing frame out of use; hard: its contents are lost already
hugepages     the pool of reserved huge pages; hugepages N makes it N pages of 2 MiB
compact       gathers scattered free memory into huge pages, zone by zone
migratepages  migratepages PID FROM TO: moves a program's own memory from a node to another; what stays is told with why
pack          gathers what is in use on removable memory in as few blocks as possible
cancel        gives up the emptying of a block or node, or packing, that is under way, and puts everything back
cpus          every CPU: programs, and counters of what it has done
swaps         every swap area: size, use, priority and errors, as /proc/swaps
vmstat        counters of the memory manager and of the resize, as /proc/vmstat
sysfs         the control tree: sysfs PATH lists or shows what is there, sysfs PATH VALUE changes it (memory/, node/)
events        events [AFTER]: what has happened to blocks and nodes, numbered; ballast guest NAME events --follow goes on
reboot        resets the machine, once this is answered
";

/// Serves the channel for as long as the guest runs.
pub(crate) async fn work(kernel: &'static Kernel, console: &'static Console) {
    let mut answers = Answers {
        kernel,
        reboots: false,
    };
    loop {
        let fault = control::serve(console, &mut answers).await;
        log!(Error, "console: {fault}");
        restart(kernel, || console.restart()).await;
    }
}

/// Who answers.
struct Answers {
    kernel: &'static Kernel,
    /// The host has asked for a reboot.
    reboots: bool,
}

impl Handler for Answers {
    async fn answer(&mut self, command: &Command<'_>) -> Reply {
        if command.name() == "sysfs" {
            let mut words = command.arguments();
            let (path, value) = (words.next().unwrap_or(""), words.next());
            return match words.next() {
                None => tree::answer(self.kernel, path, value).await,
                Some(word) => Reply::Err(alloc::format!("sysfs takes a path and a value, not {word} too")),
            };
        }
        if command.name() == "reboot" {
            files::sync_all(self.kernel).await;
        }
        if let Some(reply) = commands::answer(self.kernel, command).await {
            return reply;
        }
        let reply = answer(self.kernel, command);
        self.reboots |= command.name() == "reboot" && matches!(reply, Reply::Ok(_));
        reply
    }

    fn answered(&mut self) {
        if self.reboots {
            self.kernel.reboot();
        }
    }
}

fn answer(kernel: &Kernel, command: &Command<'_>) -> Reply {
    if let Some(argument) = command.arguments().next() {
        return Reply::Err(alloc::format!(
            "{} takes no arguments, not {argument}",
            command.name()
        ));
    }
    let mut text = String::new();
    let phys = kernel.phys;
    let written = match command.name() {
        "help" => text.write_str(HELP),
        "meminfo" => report::meminfo(&mut text, phys)
            .and_then(|()| report::meminfo_pages(&mut text, &*kernel.mm()))
            .and_then(|()| slab(&mut text, kernel))
            .and_then(|()| memory_failure::meminfo(&mut text, kernel))
            .and_then(|()| mappings::meminfo(&mut text, kernel)),
        "zoneinfo" => report::zoneinfo(&mut text, phys),
        "buddyinfo" => report::buddyinfo(&mut text, phys),
        "pagetypeinfo" => report::pagetypeinfo(&mut text, phys),
        "slabinfo" => slabinfo(&mut text, kernel.slabs),
        "nodes" => report::nodes(&mut text, phys),
        "balloon" => balloon(&mut text, kernel),
        "disks" => disks::report(&mut text, kernel),
        "blocks" => report::blocks(&mut text, phys),
        "lru" => report::lru(&mut text, phys),
        "cache" => report::cache(&mut text, &*kernel.mm()),
        "swaps" => swap::report(&mut text, kernel),
        "ps" => ps(&mut text, kernel, &kernel.mm()),
        "vmstat" => report::vmstat(&mut text, phys)
            .and_then(|()| report::reclaim(&mut text, phys, &kernel.reclaim))
            .and_then(|()| kernel.oom.report(&mut text))
            .and_then(|()| memory_failure::vmstat(&mut text, kernel))
            .and_then(|()| kernel.programs.report(&mut text))
            .and_then(|()| mappings::vmstat(&mut text, kernel))
            .and_then(|()| files::vmstat(&mut text, kernel))
            .and_then(|()| files::shm_vmstat(&mut text, kernel))
            .and_then(|()| files::direct_vmstat(&mut text))
            .and_then(|()| files::aio_vmstat(&mut text))
            .and_then(|()| resize(&mut text, kernel)),
        "vmallocinfo" => mappings::vmallocinfo(&mut text, kernel),
        "cpus" => cpus(&mut text, kernel),
        // Done once the answer is there.
        "reboot" => Ok(()),
        name => return Reply::Err(alloc::format!("unknown command {name}, try help")),
    };
    match written {
        Ok(()) => Reply::Ok(text),
        Err(fmt::Error) => Reply::Err(alloc::format!("{} could not be written", command.name())),
    }
}

/// The manager's own memory: slabs, which are part of `KernelPages`, and what was set aside before the frame allocator
/// started.
fn slab(out: &mut String, kernel: &Kernel) -> fmt::Result {
    let mut pages = 0;
    kernel.slabs.for_each_cache(|cache| {
        pages += cache.info().slabs * u64::from(cache.layout().order.nr_pages());
    });
    writeln!(out, "{:<16}{:>8} kB", "Slab:", pages * PAGE_SIZE / 1024)?;
    let (total, free) = heap::boot_usage();
    writeln!(out, "{:<16}{:>8} kB", "BootHeap:", total / 1024)?;
    writeln!(out, "{:<16}{:>8} kB", "BootHeapFree:", free / 1024)
}

fn ps(out: &mut String, kernel: &Kernel, mm: &Memory) -> fmt::Result {
    writeln!(
        out,
        "PID NAME STATE RSS_KIB CHECKS_OK CHECKS_FAILED FAULTS CPU ARGS"
    )?;
    for program in kernel.programs.lock().iter() {
        let status = *program.status.lock();
        let space = status.space.and_then(|space| mm.space(space));
        let rss_kib = space.map_or(0, |space| space.rss_pages() * PAGE_SIZE / 1024);
        write!(
            out,
            "{} {} {} {rss_kib} {} {} {} {}",
            program.pid,
            program.name(),
            status.state,
            program.checks_ok.load(Ordering::Relaxed),
            program.checks_failed.load(Ordering::Relaxed),
            program.faults.load(Ordering::Relaxed),
            program.cpu,
        )?;
        for word in program.words.iter().skip(1) {
            write!(out, " {word}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn resize(out: &mut String, kernel: &Kernel) -> fmt::Result {
    let status = *kernel.resize.lock();
    writeln!(out, "resize_requested_bytes {}", status.requested)?;
    writeln!(out, "resize_plugged_bytes {}", status.plugged)?;
    writeln!(out, "resize_at_work {}", u8::from(status.at_work))?;
    writeln!(out, "resize_tries {}", status.tries)?;
    refusal::write(out, kernel, &status)?;
    let Passes([first, second, later]) = Passes::of(&kernel.phys.stats()).since(status.before);
    writeln!(out, "resize_left_pass1 {first}")?;
    writeln!(out, "resize_left_pass2 {second}")?;
    writeln!(out, "resize_left_later {later}")
}

fn balloon(out: &mut String, kernel: &Kernel) -> fmt::Result {
    let status = *kernel.balloon.lock();
    writeln!(out, "balloon_target_bytes {}", status.target * PAGE_SIZE)?;
    writeln!(out, "balloon_held_bytes {}", status.held * PAGE_SIZE)?;
    writeln!(out, "balloon_inflated_bytes {}", status.inflated * PAGE_SIZE)?;
    writeln!(out, "balloon_deflated_bytes {}", status.deflated * PAGE_SIZE)?;
    let reason = if status.stalled { "no-memory" } else { "none" };
    writeln!(out, "balloon_stall_reason {reason}")
}

fn cpus(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(
        out,
        "CPU PROGRAMS RUNS INTERRUPTS CALLS LEAVE_CALLS FORGET_CALLS IDLE_MS"
    )?;
    for (id, nr_programs) in kernel.programs_by_cpu() {
        let Some(counters) = activity::counters(id) else {
            continue;
        };
        writeln!(
            out,
            "{id} {nr_programs} {} {} {} {} {} {}",
            counters.runs.load(Ordering::Relaxed),
            counters.interrupts.load(Ordering::Relaxed),
            counters.calls.load(Ordering::Relaxed),
            counters.leave_calls.load(Ordering::Relaxed),
            counters.forget_calls.load(Ordering::Relaxed),
            counters.idle_ns(kernel.clock.now()) / 1_000_000,
        )?;
    }
    Ok(())
}
