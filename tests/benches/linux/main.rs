//! `cargo bench --bench linux`: a stock Linux guest resized under ballast and under QEMU, side by side on one host.
//!
//! The host is this machine where its KVM is hardware, and the host box elsewhere: there this very program runs again,
//! beside both VMMs, and prints its samples, which come back over a serial port. Prints one table and writes the same to
//! `target/bench/linux.json`. `--quick` takes one round. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
mod contest;
#[path = "../frame/figure.rs"]
mod figure;
mod ours;
mod qemu;
#[path = "../frame/row.rs"]
mod row;
mod sample;
#[path = "../frame/table.rs"]
mod table;

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::Duration;

use integration_tests::host_box::{Parts, run_on_hardware_kvm};

use figure::Effort;

/// Asks the program to measure right here.
const INSIDE: &str = "--inside";
/// What it says when it has.
const PROOF: &str = "linux: all samples are taken";
/// An emulated machine in an emulated machine takes minutes for a round.
const LIFETIME: Duration = Duration::from_secs(1800);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linux: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == INSIDE) {
        let rounds = arguments.get(1).ok_or("how many rounds?")?.parse()?;
        contest::run(rounds)?;
        println!("{PROOF}");
        return Ok(());
    }
    arguments.retain(|argument| argument != "--bench");
    let args = args::Args::from_command_line("linux", arguments.into_iter())?;
    if !args.filter.is_empty() {
        return Err("the rows belong together: there is nothing to choose from".into());
    }
    build_programs()?;
    let rounds = if args.effort.rounds < Effort::FULL.rounds {
        1
    } else {
        5
    };
    let parts = Parts {
        qemu: true,
        ..Parts::default()
    };
    let printed = run_on_hardware_kvm(parts, &[INSIDE, &rounds.to_string()], PROOF, LIFETIME);
    let rows = sample::rows(&printed)?;
    for (index, row) in rows.iter().enumerate() {
        table::print(row, index == 0);
    }
    println!("written: {}", table::write_json("linux", &rows, &[])?.display());
    Ok(())
}

/// Cargo builds no other package's program for a bench, nor this one's: it is asked for those that take part.
fn build_programs() -> Result<(), Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").ok_or("run it with `cargo bench --bench linux`")?;
    for (package, programs) in [
        ("vmm", &["ballast"][..]),
        ("integration-tests", &["memcheck", "vsock-peer"]),
    ] {
        let mut build = Command::new(&cargo);
        build.args(["build", "--quiet", "--release", "--package", package]);
        build.args(programs.iter().flat_map(|program| ["--bin", program]));
        if !build.status()?.success() {
            return Err(format!("{programs:?} cannot be built").into());
        }
    }
    Ok(())
}
