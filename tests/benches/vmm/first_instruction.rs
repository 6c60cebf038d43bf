//! From the start of the process to the first instruction of the guest, as somebody sees it who waits for it.

use std::io;
use std::process::Command;
use std::time::Instant;

use crate::figure::{Effort, Figure};
use crate::process::{Place, Vmm};

/// Milliseconds: ours, then the peers, in turn. The last is nothing but a process, start to end.
///
/// # Errors
/// A process cannot be started.
pub(crate) fn measure(effort: Effort) -> io::Result<Vec<(String, Figure)>> {
    let place = Place::new()?;
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    // The first of each warms up what is read from disk.
    for round in 0..=effort.rounds {
        let bare = {
            let start = Instant::now();
            Command::new("/bin/true").status()?;
            start.elapsed()
        };
        let times = [
            place.start(Vmm::Ballast)?.after,
            place.start(Vmm::Qemu)?.after,
            bare,
        ];
        for (samples, time) in samples.iter_mut().zip(times).filter(|_| round > 0) {
            samples.push(time.as_secs_f64() * 1e3);
        }
    }
    let names = ["ballast", "qemu -M microvm", "/bin/true, start to end"].map(str::to_owned);
    Ok(names.into_iter().zip(samples.map(Figure::of)).collect())
}
