//! A GiB unplugged from the booted guest while a program works.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use integration_tests::{Home, Running, views};
use tempfile::TempDir;

use crate::case::{Case, Fill};
use crate::slices::Slices;

/// Bytes of the region, all of which is unplugged.
pub(crate) const AMOUNT: u64 = 1 << 30;
/// Boot memory: room for all that is on the region, and for the guest itself.
const BOOT: u64 = 1280 << 20;
/// Boot memory that is touched before anything is measured: the host has memory for it then, as for a guest that has run for a while.
const SPARE: &str = "1100M";
/// Seconds that the guest may take.
const PATIENCE: u64 = 120;
/// Where the swap area is: a file in memory, so that no disk of the host's takes part.
const SWAP_DIR: &str = "/dev/shm";

/// One GiB unplugged.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Milliseconds from the order to its end, as whoever gave it sees it.
    pub(crate) ms: f64,
    /// Pages of 4 KiB that moved, and that left memory, meanwhile.
    pub(crate) moved: f64,
    pub(crate) left: f64,
    /// Calls that CPUs sent to others meanwhile, so that these forget translations: a flush for each of them.
    pub(crate) calls: f64,
    pub(crate) slices: Slices,
}

/// A machine for guests.
pub(crate) struct Guests {
    home: Home,
    swap: PathBuf,
    _swap_dir: TempDir,
}

impl Guests {
    /// Makes the swap area.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let home = Home::new();
        let dir = tempfile::Builder::new()
            .prefix("ballast-bench-")
            .tempdir_in(SWAP_DIR)?;
        let swap = dir.path().join("swap.img");
        home.run(["disk", "swap", &swap.display().to_string(), "--size", "1536M"])
            .success();
        Ok(Self {
            home,
            swap,
            _swap_dir: dir,
        })
    }

    /// Boots a guest, has a program fill the region as the case says, and unplugs all of it.
    ///
    /// # Errors
    /// The guest did not get there, or is not as the case says.
    pub(crate) fn unplug(&self, case: Case) -> Result<Run, Box<dyn Error>> {
        let mut vm = self.start(case);
        vm.wait_for_driver();
        vm.resize_to(BOOT + AMOUNT);
        vm.serial.wait_for("]: filled");
        vm.serial.wait_for("]: measured before");
        check_fill(&vm, case.fill)?;
        let counts_before = Counts::of(&vm);
        let watch = Instant::now();
        let report = vm.try_resize(BOOT, PATIENCE);
        let ms = watch.elapsed().as_secs_f64() * 1e3;
        let counts = Counts::of(&vm);
        if report.text("outcome") != "reached" {
            return Err(format!("{case}: {report:?}").into());
        }
        let status = vm.wait_for_end();
        let console = vm.serial.text();
        if status != 0 || !console.contains("exited(0)") {
            return Err(format!("{case}: status {status}: {console}").into());
        }
        Ok(Run {
            ms,
            moved: counts.moved - counts_before.moved,
            left: counts.left - counts_before.left,
            calls: counts.calls - counts_before.calls,
            slices: Slices::parse(&console)?,
        })
    }

    fn start(&self, case: Case) -> Running {
        let (cpus, memory, region) = (case.cpus.to_string(), BOOT.to_string(), AMOUNT.to_string());
        let line = format!("swap=vda migrate={}", case.method);
        let huge = if case.is_huge { "huge" } else { "" };
        // A block or two of the region may have been taken for something else.
        let program = format!(
            "bench work=slices at={} size={AMOUNT} spare={SPARE} keep={}% {huge}",
            BOOT + AMOUNT / 2,
            case.fill.percent(),
        );
        let arguments = [
            "--cpus",
            &cpus,
            "--memory",
            &memory,
            "--hotplug",
            &region,
            "--disk",
            &self.swap.display().to_string(),
            "--cmdline",
            &line,
            "--program",
            program.trim_end(),
        ];
        self.home.start("migrate", &arguments)
    }
}

/// The region is as full as it is to be: programs and the guest itself may have a twentieth of it wrong.
fn check_fill(vm: &Running, fill: Fill) -> Result<(), String> {
    let blocks = views::blocks(&vm.guest("blocks"));
    let used: u64 = blocks.iter().map(|block| block.used_pages).sum();
    let percent = used * 4096 * 100 / AMOUNT;
    if percent.abs_diff(fill.percent()) <= 5 {
        Ok(())
    } else {
        Err(format!(
            "{percent} % of the region is in use where {} is due",
            fill.percent()
        ))
    }
}

/// What the guest has counted.
struct Counts {
    moved: f64,
    left: f64,
    calls: f64,
}

impl Counts {
    fn of(vm: &Running) -> Self {
        let counts = views::vmstat(&vm.guest("vmstat"));
        let count = |name: &str| counts[name] as f64;
        let cpus = views::cpus(&vm.guest("cpus"));
        Self {
            moved: count("pgmigrate_success"),
            left: count("block_pages_dropped") + count("block_pages_written"),
            calls: cpus.iter().map(|cpu| cpu.leave_calls).sum::<u64>() as f64,
        }
    }
}
