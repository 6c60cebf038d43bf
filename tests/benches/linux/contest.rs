//! The same steps with the same guest under both VMMs, in turn.

use std::error::Error;
use std::fs;
use std::time::Instant;

use integration_tests::Home;

use crate::ours::Ours;
use crate::qemu::Qemu;
use crate::sample::{Sample, What};

/// Boot memory of the guests, in MiB.
pub(crate) const BOOT_MIB: u64 = 512;
/// What is plugged and unplugged, and the size of the region, in MiB.
pub(crate) const BLOCKS_MIB: u64 = 512;
/// What goes into the balloon, in MiB.
pub(crate) const BALLOON_MIB: u64 = 256;
/// Both guests' kernels are told this: blocks are online without being asked, and can go again.
pub(crate) const CMDLINE: &str = "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable";

pub(crate) const MIB: u64 = 1 << 20;

/// A VMM with its guest, whose shell is ready. Each call returns when it is done.
pub(crate) trait Contestant {
    fn name(&self) -> &'static str;
    /// Process id of the VMM.
    fn pid(&self) -> u32;
    /// Runs a line of shell in the guest.
    fn shell(&mut self, line: &str) -> Result<String, Box<dyn Error>>;
    /// Has so much of the region plugged.
    fn plug_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>>;
    /// Has so much in the balloon, while nothing is plugged.
    fn inflate_to(&mut self, bytes: u64) -> Result<(), Box<dyn Error>>;
}

/// Takes all samples and prints them.
///
/// # Errors
/// A VMM or a guest does not do what it is asked.
pub(crate) fn run(rounds: usize) -> Result<(), Box<dyn Error>> {
    let home = Home::new();
    let begun = Instant::now();
    let ours = Ours::boot(&home)?;
    report(What::Boot, &ours, begun);
    let begun = Instant::now();
    let qemu = Qemu::boot(&home)?;
    report(What::Boot, &qemu, begun);
    let mut both: [Box<dyn Contestant>; 2] = [Box::new(ours), Box::new(qemu)];
    for contestant in &mut both {
        contestant.shell("load virtio_balloon")?;
    }
    for _ in 0..rounds {
        for contestant in &mut both {
            round(contestant.as_mut())?;
        }
        // What drifts hits the first one as often as the second.
        both.reverse();
    }
    Ok(())
}

fn round(contestant: &mut dyn Contestant) -> Result<(), Box<dyn Error>> {
    let before = mem_total(contestant)?;
    timed(What::Plug, contestant, |it| it.plug_to(BLOCKS_MIB * MIB))?;
    let plugged = mem_total(contestant)?;
    if plugged != before + BLOCKS_MIB * MIB {
        return Err(format!("{}: {plugged} bytes are there after {before}", contestant.name()).into());
    }
    use_memory(contestant)?;
    report_resident(What::ResidentBefore, contestant)?;
    timed(What::Unplug, contestant, |it| it.plug_to(0))?;
    use_memory(contestant)?;
    timed(What::Inflate, contestant, |it| it.inflate_to(BALLOON_MIB * MIB))?;
    report_resident(What::ResidentAfter, contestant)?;
    timed(What::Deflate, contestant, |it| it.inflate_to(0))?;
    let after = mem_total(contestant)?;
    if after != before {
        return Err(format!(
            "{}: {after} bytes are there where {before} were",
            contestant.name()
        )
        .into());
    }
    Ok(())
}

fn timed(
    what: What,
    contestant: &mut dyn Contestant,
    step: impl FnOnce(&mut dyn Contestant) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    step(contestant)?;
    report(what, contestant, begun);
    Ok(())
}

fn report(what: What, contestant: &dyn Contestant, begun: Instant) {
    let sample = Sample {
        what,
        who: contestant.name(),
        value: begun.elapsed().as_secs_f64() * 1e3,
    };
    println!("{sample}");
}

/// Resident memory of the VMM's process, which has the guest's.
fn report_resident(what: What, contestant: &dyn Contestant) -> Result<(), Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{}/status", contestant.pid()))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .ok_or("a process without resident memory")?
        .trim()
        .parse()?;
    let sample = Sample {
        what,
        who: contestant.name(),
        value: kib / 1024.0,
    };
    println!("{sample}");
    Ok(())
}

/// The guest writes to nearly all of its memory, verifies it and frees it.
fn use_memory(contestant: &mut dyn Contestant) -> Result<(), Box<dyn Error>> {
    let said = contestant.shell("memcheck fill 90")?;
    if said.contains("wrong 0") {
        Ok(())
    } else {
        Err(format!("{}: the guest's memory is wrong: {said}", contestant.name()).into())
    }
}

/// The guest's `MemTotal`, in bytes.
fn mem_total(contestant: &mut dyn Contestant) -> Result<u64, Box<dyn Error>> {
    let line = contestant.shell("grep MemTotal: /proc/meminfo")?;
    let kib = line.split_whitespace().nth(1).ok_or("no MemTotal")?;
    Ok(kib.parse::<u64>()? * 1024)
}
