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
#[path = "../frame/report.rs"]
mod report;
#[path = "../frame/row.rs"]
mod row;
mod rows;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::run("vmm", |args, report| {
        ballast::build()?;
        for plan in rows::all() {
            report.row(plan.name, || plan.measure(args.effort))?;
        }
        Ok(())
    })
}
