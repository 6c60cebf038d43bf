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
mod offline;
mod ours;
mod peers;
mod random;
#[path = "../frame/report.rs"]
mod report;
#[path = "../frame/row.rs"]
mod row;
mod rows;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::run("phys", |args, report| {
        let plugins = peers::Plugin::from_environment()?;
        for plan in rows::all() {
            report.row(plan.name, || Ok(Ok(plan.measure(args.effort, &plugins))))?;
        }
        Ok(())
    })
}
