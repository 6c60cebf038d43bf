//! The host box: a machine whose KVM is like hardware's, wherever the tests run.
//!
//! Stock Linux guests need a KVM that runs ring 0 as hardware does. Where the processor offers that (the `vmx` or
//! `svm` flag), a test runs directly. Elsewhere the test binary boots QEMU's software emulation of a whole machine
//! with AMD-V, with a Debian kernel and its own `kvm_amd`, and runs *itself* inside, for that one test; what the
//! inner run printed and how it ended comes back over a serial port. A box that ends without saying so is a failure.
//! All boxes with the same parts boot once: each test's goes on from there (`snapshot`).
//! One that stops as a whole, which is taken to be the emulator's doing and was not proved to be, is replaced once, with
//! a word of it (`pulse`).

mod image;
mod machine;
mod pulse;
mod snapshot;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

pub use image::{add_file, add_program};

use crate::ballast::finish;
use crate::debian::Release;
use machine::Inner;

/// Set inside the box: the folder that holds the stock guests' kernels and ramdisks.
const IMAGE_VARIABLE: &str = "BALLAST_TEST_LINUX_IMAGE";

/// What a test needs in the box besides itself, `ballast` and the newest stock guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts {
    /// Kernels of stock guests instead of the newest; none means the newest.
    pub kernels: &'static [Release],
    /// Whether a disk with a Debian system is in the box.
    pub root_disk: bool,
    /// Whether QEMU is in the box.
    pub qemu: bool,
}

impl Parts {
    /// A stock guest of `release`.
    pub fn kernel(release: Release) -> Self {
        Self {
            kernels: match release {
                Release::V6_1 => &[Release::V6_1],
                Release::V6_12 => &[Release::V6_12],
            },
            ..Self::default()
        }
    }

    /// The newest stock guest and a disk with a Debian system ([`crate::debian::root_disk`]).
    pub fn root_disk() -> Self {
        Self {
            root_disk: true,
            ..Self::default()
        }
    }

    /// The kernels of stock guests that are in the box.
    fn releases(&self) -> &'static [Release] {
        if self.kernels.is_empty() {
            &[Release::V6_12]
        } else {
            self.kernels
        }
    }
}

/// Set inside the box: the disk with a Debian system, if the box has it.
const DISK_VARIABLE: &str = "BALLAST_TEST_ROOT_DISK";

/// Runs `body` on a KVM like hardware's: here, or in the host box. Must be called as the whole body of a test, with
/// a closure: its type's name tells which test that is.
///
/// # Panics
/// When the body does, here or in the box, and when the box does not report.
pub fn needs_hardware_kvm<F: FnOnce()>(body: F) {
    needs_hardware_kvm_and(Parts::default(), body);
}

/// As [`needs_hardware_kvm`], with `parts` in the box.
///
/// # Panics
/// As [`needs_hardware_kvm`].
pub fn needs_hardware_kvm_and<F: FnOnce()>(parts: Parts, body: F) {
    if processor_has_virtualization() {
        body();
    } else {
        let test = test_name(std::any::type_name::<F>());
        let inner = Inner {
            arguments: &format!("--exact {test} --include-ignored --nocapture"),
            proof: ONE_TEST_PASSED,
            lifetime: TEST_LIFETIME,
        };
        machine::run(&inner, parts);
    }
}

/// What a test binary says after exactly one test, which passed.
const ONE_TEST_PASSED: &str = "test result: ok. 1 passed;";

/// Longest life of a box that works for a test.
const TEST_LIFETIME: Duration = Duration::from_secs(500);

/// Runs this very program again, with `arguments` (no spaces in any), on a KVM like hardware's: here, or in a host box with
/// `parts`, which may live for `lifetime`. Answers what it printed, in which `proof` must be.
///
/// # Panics
/// When the inner run fails or does not give its proof, and when the box does not report.
pub fn run_on_hardware_kvm(parts: Parts, arguments: &[&str], proof: &str, lifetime: Duration) -> String {
    if processor_has_virtualization() {
        let program = std::env::current_exe().unwrap_or_else(|error| panic!("where am I? {error}"));
        let printed = finish(Command::new(program).args(arguments)).success();
        assert!(printed.contains(proof), "without {proof:?}: {printed}");
        return printed;
    }
    let inner = Inner {
        arguments: &arguments.join(" "),
        proof,
        lifetime,
    };
    machine::run(&inner, parts)
}

/// Says that a test goes on to the case called `name`. When a test fails in the box, the last case is named.
pub fn begin_case(name: &str) {
    println!("{CASE}{name}");
}

/// Begins the line that names a case.
const CASE: &str = "case: ";

/// Folder of the stock guests' images, when running in the box.
pub fn linux_image_dir() -> Option<PathBuf> {
    std::env::var_os(IMAGE_VARIABLE).map(PathBuf::from)
}

/// The disk with a Debian system, when running in a box that has it.
pub fn root_disk() -> Option<String> {
    std::env::var(DISK_VARIABLE).ok()
}

/// Path of a program of this package, which cargo builds before the tests.
pub fn program(name: &str) -> PathBuf {
    crate::ballast::profile_dir().join(name)
}

fn processor_has_virtualization() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// The name libtest knows a test by: the closure's path without the crate and without the closure itself. Should
/// the compiler ever name types otherwise, the inner run finds no such test, and that is reported as a failure.
fn test_name(closure: &str) -> String {
    let path = closure.trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_, path)| path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_knows_the_name_of_its_test() {
        fn name_of<F: FnOnce()>(_: F) -> String {
            test_name(std::any::type_name::<F>())
        }
        let expected = "host_box::tests::a_closure_knows_the_name_of_its_test";
        assert_eq!(name_of(|| {}), expected);
    }
}
