//! `cargo bench --bench vmm`: the VMM itself, against what the host can do at best and against another VMM, in one run.
//!
//! Prints one table and writes the same to `target/bench/vmm.json`. `-- FILTER` runs the rows whose name contains the
//! text; `--quick` takes fewer samples. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
mod ceiling;
#[path = "../frame/clock.rs"]
mod clock;
mod driver;
#[path = "../frame/figure.rs"]
mod figure;
mod first_instruction;
mod kernel;
mod overhead;
mod process;
mod ram;
#[path = "../frame/row.rs"]
mod row;
mod rows;
#[path = "../frame/table.rs"]
mod table;

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args = args::Args::from_command_line("vmm", std::env::args().skip(1))?;
    build_ballast()?;
    let mut rows = Vec::new();
    for plan in rows::all() {
        if !plan.name.contains(&args.filter) {
            continue;
        }
        match plan.measure(args.effort)? {
            Some(row) => {
                table::print(&row, rows.is_empty());
                rows.push(row);
            }
            None => println!(
                "{:<34} not measured: the host has no such pages in its pool",
                plan.name
            ),
        }
    }
    if rows.is_empty() {
        return Err(format!("no row's name contains {:?}", args.filter).into());
    }
    let path = table::write_json("vmm", &rows)?;
    println!("written: {}", path.display());
    Ok(())
}

/// Cargo builds no other package's program for a bench: it is asked for the one that is measured.
fn build_ballast() -> Result<(), Box<dyn std::error::Error>> {
    let cargo = std::env::var_os("CARGO").ok_or("run it with `cargo bench --bench vmm`")?;
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
