//! Memory of a VMM beyond its guest's: what its process has of its own, as the kernel accounts for it.

use std::fs;
use std::io;

use crate::figure::{Effort, Figure};
use crate::process::{MEMORY_MIB, Place, Vmm};

/// Mebibytes: ours as it is started, then the peer.
///
/// # Errors
/// A VMM cannot be started or looked at.
pub(crate) fn measure(effort: Effort, ours: Vmm) -> io::Result<Vec<(String, Figure)>> {
    let place = Place::new()?;
    let rounds = effort.rounds.min(5);
    [(ours, "ballast"), (Vmm::Qemu, "qemu -M microvm")]
        .into_iter()
        .map(|(vmm, name)| {
            let samples: io::Result<Vec<f64>> = (0..rounds)
                .map(|_| {
                    let running = place.start(vmm)?;
                    own_mib(&fs::read_to_string(format!("/proc/{}/smaps", running.pid()))?)
                })
                .collect();
            Ok((name.to_owned(), Figure::of(samples?)))
        })
        .collect()
}

/// The proportional share of all mappings but those as large as the guest's memory, which are the guest's.
fn own_mib(smaps: &str) -> io::Result<f64> {
    let mut guests = false;
    let mut own_kib = 0;
    for line in smaps.lines() {
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let kib: Option<u64> = value
            .trim()
            .strip_suffix(" kB")
            .and_then(|kib| kib.trim().parse().ok());
        match (field, kib) {
            ("Size", Some(kib)) => guests = kib >= MEMORY_MIB * 1024,
            ("Pss", Some(kib)) if !guests => own_kib += kib,
            _ => {}
        }
    }
    if own_kib == 0 {
        return Err(io::Error::other("the process has no memory"));
    }
    Ok(own_kib as f64 / 1024.0)
}
