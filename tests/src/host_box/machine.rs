//! Boots the box, waits for its end, and judges what it reported.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::ballast::Reaper;
use crate::debian::{KernelPackage, require};

/// Longest life of a box. It only bounds how long a hanging one is waited for.
const LIFETIME: Duration = Duration::from_secs(280);

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Runs the test called `test` of this very binary in a box.
///
/// # Panics
/// When the inner run fails, does not run exactly one test, or the box does not report.
pub(super) fn run(test: &str) {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
    let package = KernelPackage::fetch();
    let (ramdisk, console, report) = (
        dir.path().join("ramdisk"),
        dir.path().join("console"),
        dir.path().join("report"),
    );
    let written = fs::write(&ramdisk, super::image::ramdisk(&package, test));
    written.unwrap_or_else(|error| panic!("cannot write the box's ramdisk: {error}"));

    let mut qemu = Command::new(require(QEMU, "qemu-system-x86"));
    // One processor: with two, the emulated kernel was seen to trip over its own patching of code (int3 in
    // `__schedule`) about once in ten boots, which QEMU's emulation of several does not get right.
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "4096", "-smp", "1"]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-no-reboot",
    ]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.arg("-serial").arg(format!("file:{}", report.display()));
    qemu.arg("-kernel")
        .arg(package.image())
        .arg("-initrd")
        .arg(&ramdisk);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    let child = qemu
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {QEMU}: {error}"));
    let ended = wait(Reaper(child));

    let (console, report) = (read(&console), read(&report));
    println!("---- in the host box\n{report}----");
    if let Err(why) = judge(&report) {
        panic!(
            "in the host box: {why}{}\n---- its console\n{console}----",
            if ended { "" } else { " (it hung)" }
        );
    }
}

/// Answers whether the box ended by itself.
fn wait(mut qemu: Reaper) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LIFETIME {
        if matches!(qemu.0.try_wait(), Ok(Some(_))) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// A good report says that exactly one test ran and passed, and ends with exit status 0.
fn judge(report: &str) -> Result<(), &'static str> {
    let last = report
        .lines()
        .rfind(|line| line.starts_with("host box: exit status "));
    match last {
        None => Err("no exit status was reported"),
        Some(line) if line != "host box: exit status 0" => Err("the test failed"),
        Some(_) if !report.contains("test result: ok. 1 passed;") => {
            Err("the inner run did not run the test")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_passed_test_and_exit_status_0_count() {
        let ran = "running 1 test\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(judge(&format!("{ran}host box: exit status 0\n")), Ok(()));
        assert!(judge(&format!("{ran}host box: exit status 101\n")).is_err());
        assert!(judge(ran).is_err(), "the box died before it could report");
        assert!(judge("running 0 tests\ntest result: ok. 0 passed;\nhost box: exit status 0\n").is_err());
    }
}
