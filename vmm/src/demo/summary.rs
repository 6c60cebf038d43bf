//! How a run of the demo ended, in numbers: for people, and as the one object of `--json`.

use std::fmt;

use serde::Serialize;

use super::scene::Scene;
use crate::spec::MIB;

/// The numbers of one run. The field names are those of the JSON object.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Moves that were completed.
    pub moves: usize,
    /// Bytes that went from one guest to the other in them.
    pub bytes_moved: u64,
    /// Pages of 4 KiB that both guests moved to other frames; a huge page counts as 512.
    pub pages_migrated: u64,
    /// Verifications by programs that found what was written.
    pub checks_ok: u64,
    /// Verifications that did not.
    pub checks_failed: u64,
    /// Accesses to blocks that were not plugged.
    pub violations: u64,
    /// What both VMs together were allowed to hold on the host, in bytes.
    pub budget_bytes: u64,
    /// The most that both processes together were seen to hold, in bytes.
    pub peak_host_bytes: u64,
    /// From the start of the demo to its end.
    pub seconds: f64,
}

impl Summary {
    /// What the scene has come to.
    #[must_use]
    pub fn of(scene: &Scene) -> Self {
        let sum = |value: &dyn Fn(&super::scene::GuestScene) -> u64| scene.guests.iter().map(value).sum();
        let checks = |guest: &super::scene::GuestScene, value: &dyn Fn(&super::view::Program) -> u64| {
            guest.programs.iter().map(value).sum::<u64>()
        };
        Self {
            moves: scene.done.len(),
            bytes_moved: scene.done.iter().map(|one| one.bytes).sum(),
            pages_migrated: sum(&|guest| guest.counters.pages_migrated),
            checks_ok: sum(&|guest| checks(guest, &|program| program.checks_ok)),
            checks_failed: sum(&|guest| checks(guest, &|program| program.checks_failed)),
            violations: sum(&|guest| guest.violations),
            budget_bytes: scene.budget,
            peak_host_bytes: scene.peak,
            seconds: scene.elapsed().as_secs_f64(),
        }
    }

    /// What is wrong with these numbers, in words; empty if nothing is.
    #[must_use]
    pub fn faults(&self, nr_moves: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if self.moves != nr_moves {
            faults.push(format!("{} of {nr_moves} moves were completed", self.moves));
        }
        if self.checks_failed > 0 {
            faults.push(format!("{} verifications failed", self.checks_failed));
        }
        if self.checks_ok == 0 {
            faults.push("nothing was verified".into());
        }
        if self.violations > 0 {
            faults.push(format!("{} accesses to unplugged memory", self.violations));
        }
        if self.peak_host_bytes > self.budget_bytes {
            faults.push(format!(
                "{} bytes were held on the host, {} more than the budget",
                self.peak_host_bytes,
                self.peak_host_bytes - self.budget_bytes
            ));
        }
        if self.peak_host_bytes == 0 {
            faults.push("the host's memory was never measured".into());
        }
        faults
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} MiB went from guest to guest in {} moves, {:.1} s in all",
            self.bytes_moved / MIB,
            self.moves,
            self.seconds
        )?;
        writeln!(
            f,
            "{} pages were moved inside the guests to make way, while their programs ran",
            self.pages_migrated
        )?;
        writeln!(
            f,
            "{} verifications found what was written, {} did not",
            self.checks_ok, self.checks_failed
        )?;
        writeln!(f, "{} accesses to unplugged memory", self.violations)?;
        write!(
            f,
            "at most {} MiB were resident on the host, of a budget of {} MiB",
            self.peak_host_bytes.div_ceil(MIB),
            self.budget_bytes / MIB
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Summary {
        Summary {
            moves: 6,
            bytes_moved: 2 << 30,
            pages_migrated: 34_816,
            checks_ok: 100,
            checks_failed: 0,
            violations: 0,
            budget_bytes: 1000,
            peak_host_bytes: 1000,
            seconds: 12.5,
        }
    }

    #[test]
    fn the_object_has_exactly_the_agreed_fields() {
        let object = serde_json::to_value(good()).expect("plain data");
        let mut names: Vec<&str> = object
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "budget_bytes",
                "bytes_moved",
                "checks_failed",
                "checks_ok",
                "moves",
                "pages_migrated",
                "peak_host_bytes",
                "seconds",
                "violations"
            ]
        );
        assert_eq!(object["bytes_moved"], 2_u64 << 30);
        assert_eq!(object["seconds"], 12.5);
    }

    #[test]
    fn a_run_in_which_nothing_was_lost_has_no_faults() {
        assert_eq!(good().faults(6), Vec::<String>::new());
    }

    #[test]
    fn each_loss_is_a_fault_of_its_own() {
        let spoil: [fn(&mut Summary); 6] = [
            |run| run.moves = 5,
            |run| run.checks_failed = 1,
            |run| run.checks_ok = 0,
            |run| run.violations = 1,
            |run| run.peak_host_bytes = 1001,
            |run| run.peak_host_bytes = 0,
        ];
        for spoil in spoil {
            let mut run = good();
            spoil(&mut run);
            assert_eq!(run.faults(6).len(), 1, "{run:?}");
        }
    }
}
