//! Builds the programs that the image carries, and links the image as a static ELF at fixed physical addresses,
//! without any start-up files or libraries.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let folder =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for every build script"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it for every build script"));
    link(&folder);
    let programs = build_programs(&folder.join("../programs"), &out.join("programs"));
    println!("cargo::rustc-env=GUEST_PROGRAMS={}", programs.display());
}

fn link(folder: &Path) {
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,--gc-sections",
    ];
    for argument in arguments {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-T,{}",
        folder.join("guest.ld").display()
    );
    println!("cargo::rerun-if-changed=guest.ld");
}

/// Returns the path of the programs' executable.
///
/// They are built into a target directory of their own: this script runs while cargo holds the lock of the
/// outer one. They are always optimised: they check gigabytes.
fn build_programs(package: &Path, target: &Path) -> PathBuf {
    for changed in ["src", "build.rs", "programs.ld", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", package.join(changed).display());
    }
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it for every build script"));
    cargo
        .args(["build", "--release", "--bin", "guest-programs", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target);
    // What is meant for the host's code (coverage, sanitizers, clippy as a compiler) must not reach the guest's.
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_MAKEFLAGS",
    ] {
        cargo.env_remove(variable);
    }
    let status = cargo
        .status()
        .expect("cargo, which runs this script, can be started");
    assert!(status.success(), "building the guest's programs failed: {status}");
    target.join("release/guest-programs")
}
