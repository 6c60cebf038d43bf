//! Builds the guest that comes with the VMM, so that `ballast` is one file: a nested `cargo build` of `guest-kernel`,
//! whose image `src/boot/built_in.rs` then includes.
//!
//! The nested build has a target directory of its own: the outer cargo holds the lock of the usual one. It also has an
//! environment of its own: flags and wrappers meant for host programs (coverage, sanitizers, clippy) have no
//! place in a guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What decides the image, beside the toolchain; relative to the workspace.
const SOURCES: [&str; 4] = ["guest-mm", "devices/wire", "Cargo.toml", "Cargo.lock"];

/// What must not reach the nested build, beside nearly all of `CARGO…`.
const FOREIGN: [&str; 6] = [
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "MAKEFLAGS",
    "MFLAGS",
];

/// What of `CARGO…` says how this machine reaches the registry, and not how the host's package is built.
const KEPT: [&str; 5] = [
    "CARGO_HOME",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTR",
    "CARGO_TERM_",
];

fn main() -> ExitCode {
    match build() {
        Ok(image) => {
            println!("cargo::rustc-env=GUEST_KERNEL_IMAGE={}", image.display());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("cargo::error=the built-in guest cannot be built: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let workspace = directory("CARGO_MANIFEST_DIR")?.join("..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let target = directory("OUT_DIR")?.join("guest");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = !text.starts_with("CARGO") || KEPT.iter().any(|kept| text.starts_with(kept));
        if !kept || FOREIGN.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    // Always optimised: ring-0 instructions are dear on an emulated CPU, and the guest copies and checks gigabytes.
    command
        .current_dir(&workspace)
        .args([
            "build",
            "--release",
            "--package",
            "guest-kernel",
            "--bin",
            "guest-kernel",
        ])
        // Nobody debugs the embedded copy; panics carry file and line without it.
        .args(["--config", "profile.release.strip=\"debuginfo\""])
        .arg("--target-dir")
        .arg(&target);
    let status = command
        .status()
        .map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    if !status.success() {
        return Err(format!("{command:?} ended with {status}"));
    }
    existing(&target.join("release/guest-kernel"))
}

fn directory(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("cargo did not set {name}"))
}

fn existing(image: &Path) -> Result<PathBuf, String> {
    if image.is_file() {
        Ok(image.to_owned())
    } else {
        Err(format!("cargo succeeded, but there is no {}", image.display()))
    }
}
