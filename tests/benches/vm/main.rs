//! `cargo bench --bench vm`: guest-mm's virtual memory, page cache and swap, against the copying that they cannot do without, and the same in
//! the booted guest, against its disks; in one run.
//!
//! Prints one table: for each row guest-mm, then what it is measured by, with the median, least and greatest of the samples, and writes the
//! same to `target/bench/vm.json`. `-- FILTER` runs the rows whose name contains the text; `--quick` takes a few short
//! samples. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
#[path = "../frame/ballast.rs"]
mod ballast;
#[path = "../frame/clock.rs"]
mod clock;
mod faults;
#[path = "../frame/figure.rs"]
mod figure;
mod files;
#[path = "../frame/flat.rs"]
mod flat;
mod guest;
mod machine;
#[path = "../phys/measure.rs"]
mod measure;
#[path = "../phys/memory.rs"]
mod memory;
#[path = "../phys/random.rs"]
mod random;
mod raw;
mod reclaim;
#[path = "../frame/row.rs"]
mod row;
mod rows;
mod swap;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

use row::Missing;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args = args::Args::from_command_line("vm", std::env::args().skip(1))?;
    ballast::build()?;
    let before = load_average()?;
    let mut bench = rows::Bench::new(args.effort);
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    for plan in rows::all()
        .into_iter()
        .filter(|plan| plan.name.contains(&args.filter))
    {
        match plan.measure(&mut bench)? {
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
    let path = table::write_json("vm", &rows, &missing)?;
    println!("written: {}", path.display());
    Ok(())
}

/// Processes that wanted a processor in the last minute, as the kernel averages them.
fn load_average() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
