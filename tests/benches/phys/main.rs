//! `cargo bench --bench phys`: guest-mm's physical memory against other allocators, in one run.
//!
//! Prints one table: for each row guest-mm, then its peers, with the median, least and greatest of the samples, guest-mm
//! as a share of each peer, and the goal. Writes the same to `target/bench/phys.json`. `-- FILTER` runs the rows whose
//! name contains the text; `--quick` takes a few short samples. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
mod blocks;
#[path = "../frame/clock.rs"]
mod clock;
#[path = "../frame/figure.rs"]
mod figure;
#[path = "../frame/flat.rs"]
mod flat;
mod frames;
mod measure;
mod memory;
mod migrate;
mod objects;
mod ours;
mod peers;
mod random;
#[path = "../frame/row.rs"]
mod row;
mod rows;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phys: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args = args::Args::from_command_line("phys", std::env::args().skip(1))?;
    let plugins = peers::Plugin::from_environment()?;
    let before = load_average()?;
    let mut rows = Vec::new();
    for plan in rows::all()
        .into_iter()
        .filter(|plan| plan.name.contains(&args.filter))
    {
        let row = plan.measure(args.effort, &plugins);
        table::print(&row, rows.is_empty());
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(format!("no row's name contains {:?}", args.filter).into());
    }
    println!("\nload average before: {before}, after: {}", load_average()?);
    let path = table::write_json("phys", &rows, &[])?;
    println!("written: {}", path.display());
    Ok(())
}

/// Processes that wanted a processor in the last minute, as the kernel averages them.
fn load_average() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
