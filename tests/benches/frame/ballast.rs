//! The `ballast` that is measured.

use std::process::Command;

/// Cargo builds no other package's program for a bench: it is asked for the one that is measured.
///
/// # Errors
/// The bench was not started by cargo, or `ballast` cannot be built.
pub(crate) fn build() -> Result<(), Box<dyn std::error::Error>> {
    let cargo = std::env::var_os("CARGO").ok_or("run it with `cargo bench`")?;
    let build = [
        "build",
        "--quiet",
        "--release",
        "--package",
        "vmm",
        "--bin",
        "ballast",
    ];
    if Command::new(cargo).args(build).status()?.success() {
        Ok(())
    } else {
        Err("`ballast` cannot be built".into())
    }
}
