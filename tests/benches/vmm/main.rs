//! `cargo bench --bench vmm`: the VMM itself, against what the host can do at best and against another VMM, in one run.
//!
//! Prints one table and writes the same to `target/bench/vmm.json`. `-- FILTER` runs the rows whose name contains the
//! text; `--quick` takes fewer samples. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
#[path = "../frame/ballast.rs"]
mod ballast;
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

use std::process::ExitCode;

use row::Missing;

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
    ballast::build()?;
    let before = load_average()?;
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for plan in rows::all() {
        if !plan.name.contains(&args.filter) {
            continue;
        }
        match plan.measure(args.effort)? {
            Ok(row) => {
                table::print(&row, rows.is_empty());
                rows.push(row);
            }
            Err(reason) => {
                let row = Missing {
                    name: plan.name,
                    reason,
                };
                table::print_missing(&row);
                missing.push(row);
            }
        }
    }
    if rows.is_empty() && missing.is_empty() {
        return Err(format!("no row's name contains {:?}", args.filter).into());
    }
    println!("\nload average before: {before}, after: {}", load_average()?);
    let path = table::write_json("vmm", &rows, &missing)?;
    println!("written: {}", path.display());
    Ok(())
}

/// Over the last minute: more than one processor's worth means that other programs disturbed the figures.
fn load_average() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
