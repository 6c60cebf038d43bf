//! A box that has booted, kept: where each test's box goes on from.
//!
//! An emulated machine takes several seconds to boot, and until they are told what to run, boxes with the same parts are
//! the same. So one is booted, and once it is ready its memory and its devices are written to a file, as QEMU does to move
//! a machine elsewhere. The file is made anew when anything in it has changed since: programs, kernels, the emulator, and
//! the machine that emulates, whose clock is the box's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Parts;
use super::image::{READY, ramdisk, sources};
use super::machine::{BOXES, command, read, start};
use super::pulse::Pulse;
use crate::debian::{KernelPackage, Release, shared_while};
use crate::qmp::Qmp;
use crate::wait::{DEADLINE, eventually};

/// The file in a snapshot with the machine itself.
const MACHINE: &str = "machine";
/// The file in a snapshot that says what is in it.
const SOURCES: &str = "sources";

/// The folder with a box that has `parts` and is ready, made when there is none yet, or none with what is to be in it now.
///
/// # Panics
/// When it cannot be made.
pub(super) fn fetch(parts: Parts) -> PathBuf {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let boot = boot.unwrap_or_else(|error| panic!("which machine is this? {error}"));
    let files = sources(parts);
    let sources: String = std::iter::once(boot)
        .chain(files.iter().map(|it| line(it)))
        .collect();
    let same = |kept: &Path| fs::read_to_string(kept.join(SOURCES)).is_ok_and(|text| text == sources);
    shared_while(&name(parts), same, |staging| {
        make(parts, staging);
        let written = fs::write(staging.join("box").join(SOURCES), &sources);
        written.unwrap_or_else(|error| panic!("cannot say what is in a box: {error}"));
        staging.join("box")
    })
}

/// What QEMU is to read the machine in `snapshot` with.
pub(super) fn reader(snapshot: &Path) -> String {
    format!("exec:cat '{}'", snapshot.join(MACHINE).display())
}

fn name(parts: Parts) -> String {
    let mut name = "box".to_owned();
    for release in parts.releases() {
        name = format!("{name}-{}", release.number());
    }
    for (part, has) in [("disk", parts.root_disk), ("qemu", parts.qemu)] {
        if has {
            name = format!("{name}-{part}");
        }
    }
    name
}

/// A file as it is now: who writes to it changes its time.
fn line(path: &Path) -> String {
    let data = fs::metadata(path).unwrap_or_else(|error| panic!("no {}: {error}", path.display()));
    format!(
        "{} {} {}.{}\n",
        path.display(),
        data.size(),
        data.mtime(),
        data.mtime_nsec()
    )
}

/// Makes the folder `box` below `staging`, with the machine in it.
fn make(parts: Parts, staging: &Path) {
    let package = KernelPackage::fetch(Release::V6_12);
    let initrd = staging.join("ramdisk");
    let written = fs::write(&initrd, ramdisk(&package, parts));
    written.unwrap_or_else(|error| panic!("cannot write the box's ramdisk: {error}"));
    let made = fs::create_dir(staging.join("box"));
    made.unwrap_or_else(|error| panic!("cannot make a folder for the box: {error}"));
    for number in 1..=BOXES {
        let (report, monitor) = (staging.join("report"), staging.join("monitor"));
        let mut pulse = Pulse::new(staging);
        let mut qemu = command(parts, (&report, &pulse));
        qemu.arg("-initrd").arg(&initrd);
        qemu.arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let qemu = start(qemu);
        if is_ready(&mut pulse, &report) {
            keep(&monitor, &staging.join("box"));
            return;
        }
        drop(qemu);
        println!(
            "host box {number} of {BOXES} has stopped before it was ready\n{}----",
            pulse.console()
        );
    }
    panic!("{BOXES} host boxes have stopped in a row");
}

/// Waits until a box is ready; false if it stops before that.
fn is_ready(pulse: &mut Pulse, report: &Path) -> bool {
    let begun = Instant::now();
    loop {
        let said = read(report);
        if said.contains(READY) {
            assert_eq!(
                said.trim(),
                READY,
                "something is wrong with a box:\n{}",
                pulse.console()
            );
            return true;
        }
        if !pulse.is_felt() {
            return false;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "a box does not get ready: {said}\n---- its console\n{}----",
            pulse.console()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes the machine to a file in `folder`.
fn keep(monitor: &Path, folder: &Path) {
    let (part, machine) = (folder.join("part"), folder.join(MACHINE));
    // QEMU says that it is done when it has written everything to the pipe.
    let write = format!(
        "exec:cat >'{0}' && mv '{0}' '{1}'",
        part.display(),
        machine.display()
    );
    let order = || {
        let mut qmp = Qmp::connect(monitor)?;
        qmp.order("migrate-set-parameters", &json!({"max-bandwidth": 1_u64 << 40}))?;
        qmp.order("migrate", &json!({"uri": write}))?;
        Ok::<Qmp, Box<dyn std::error::Error>>(qmp)
    };
    let mut qmp = order().unwrap_or_else(|error| panic!("a box cannot be kept: {error}"));
    eventually("the end of writing a box to a file", || {
        let state = qmp.order("query-migrate", &json!({}));
        let state = state.unwrap_or_else(|error| panic!("a box cannot be kept: {error}"));
        assert!(state["status"] != "failed", "a box cannot be kept: {state}");
        machine.exists().then_some(())
    });
}
