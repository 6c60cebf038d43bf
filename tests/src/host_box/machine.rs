//! A box's emulated machine; runs one for a test, waits for its end, and judges what it reported.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::pulse::Pulse;
use super::{CASE, Parts, snapshot};
use crate::ballast::Reaper;
use crate::debian::{KernelPackage, Release, require, root_image};

/// How many boxes may stop before that is a failure.
pub(super) const BOXES: u32 = 2;

pub(super) const QEMU: &str = "/usr/bin/qemu-system-x86_64";
pub(super) const QEMU_PACKAGE: &str = "qemu-system-x86";

/// All that the emulation knows, but for two things.
///
/// - XSAVE, and with it AVX: with it, as if the emulated SVM did not intercept XSETBV and the box's KVM never learnt what a
///   guest writes to XCR0, the guest's kernel finds the size of its state inconsistent, says so with a
///   warning, and would no longer save all registers of its programs.
/// - Fast `rep stosb` and `rep movsb`: emulation takes them byte by byte, and kernels that do not see the flags use words.
const CPU: &str = "max,-xsave,-erms,-fsrm";

/// What is run in a box: this very program, again.
pub(super) struct Inner<'a> {
    /// Its arguments, with spaces in between.
    pub(super) arguments: &'a str,
    /// What it says when it has done what it is run for, besides ending with exit status 0.
    pub(super) proof: &'a str,
    /// Longest life of a box that works. It only bounds how long one that goes round in circles is waited for.
    pub(super) lifetime: Duration,
}

/// Runs `inner` in a box with `parts`, and answers what it printed.
///
/// # Panics
/// When the inner run fails, does not give its proof, or the box does not report.
pub(super) fn run(inner: &Inner<'_>, parts: Parts) -> String {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
    let report = dir.path().join("report");
    let snapshot = snapshot::fetch(parts);
    for number in 1..=BOXES {
        let mut pulse = Pulse::with_order(dir.path(), inner.arguments);
        let mut qemu = command(parts, (&report, &pulse));
        qemu.arg("-incoming").arg(snapshot::reader(&snapshot));
        let end = wait(start(qemu), &mut pulse, inner.lifetime);
        let (console, report) = (pulse.console(), read(&report));
        println!("---- in the host box\n{report}----");
        if end == End::Stopped {
            println!(
                "host box {number} of {BOXES} has stopped, its timers too\n---- its console\n{console}----"
            );
            continue;
        }
        if let Err(why) = judge(&report, inner.proof) {
            panic!(
                "in the host box: {why}{} ({end:?})\n---- its console\n{console}----",
                last_case(&report)
            );
        }
        return report;
    }
    panic!("{BOXES} host boxes have stopped in a row");
}

/// How the wait for a box ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The box switched itself off.
    SwitchedOff,
    /// It has no pulse any more: its kernel or the emulator has stopped, which a test's own hanging does not bring about.
    Stopped,
    /// It works, and works on.
    TooLong,
}

/// The machine of a box with `parts`, which has a kernel and no ramdisk yet.
pub(super) fn command(parts: Parts, (report, pulse): (&Path, &Pulse)) -> Command {
    let mut qemu = Command::new(require(QEMU, QEMU_PACKAGE));
    // One processor: with two, the emulated kernel was seen to trip over its own patching of code (int3 in
    // `__schedule`) about once in ten boots, which QEMU's emulation of several does not get right.
    qemu.args(["-accel", "tcg", "-cpu", CPU, "-m", "4096", "-smp", "1"]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-no-reboot",
    ]);
    qemu.args(pulse.arguments());
    qemu.arg("-serial").arg(format!("file:{}", report.display()));
    qemu.arg("-kernel")
        .arg(KernelPackage::fetch(Release::V6_12).image());
    // Its kernel would try the timer for a few milliseconds of what an emulated processor takes for time, and on a busy
    // machine panic, or go on with the timer connected in another way.
    qemu.args([
        "-append",
        "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check",
    ]);
    if parts.root_disk {
        // What is written lasts as long as the box.
        let drive = format!("file={},if=virtio,format=raw,snapshot=on", root_image().display());
        qemu.arg("-drive").arg(drive);
    }
    qemu
}

/// Starts a machine.
pub(super) fn start(mut qemu: Command) -> Reaper {
    let child = qemu
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {QEMU}: {error}"));
    Reaper(child)
}

/// Waits for the end of a box, which is then gone.
fn wait(mut qemu: Reaper, pulse: &mut Pulse, lifetime: Duration) -> End {
    let begun = Instant::now();
    while begun.elapsed() < lifetime {
        if matches!(qemu.0.try_wait(), Ok(Some(_))) {
            return End::SwitchedOff;
        }
        if !pulse.is_felt() {
            return End::Stopped;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    End::TooLong
}

/// What a box has reported so far.
pub(super) fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// A good report has the proof that what was to be run was run, and ends with exit status 0.
fn judge(report: &str, proof: &str) -> Result<(), &'static str> {
    let last = report
        .lines()
        .rfind(|line| line.starts_with("host box: exit status "));
    match last {
        None => Err("no exit status was reported"),
        Some(line) if line != "host box: exit status 0" => Err("the inner run failed"),
        Some(_) if !report.contains(proof) => Err("the inner run did not do what it was to do"),
        Some(_) => Ok(()),
    }
}

/// Where the report ends among the cases of a test that has some.
fn last_case(report: &str) -> String {
    let name = report.lines().rev().find_map(|line| line.split_once(CASE));
    name.map_or_else(String::new, |(_, name)| format!(" in the case {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_case_that_failed_is_named() {
        let report = "running 1 test\ntest a ... case: one\ncase: two words\npanicked\n";
        assert_eq!(last_case(report), " in the case \"two words\"");
        assert_eq!(last_case("running 1 test\n"), "");
    }

    #[test]
    fn only_one_passed_test_and_exit_status_0_count() {
        let judge = |report: &str| judge(report, super::super::ONE_TEST_PASSED);
        let ran = "running 1 test\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(judge(&format!("{ran}host box: exit status 0\n")), Ok(()));
        assert!(judge(&format!("{ran}host box: exit status 101\n")).is_err());
        assert!(judge(ran).is_err(), "the box died before it could report");
        assert!(judge("running 0 tests\ntest result: ok. 0 passed;\nhost box: exit status 0\n").is_err());
    }
}
