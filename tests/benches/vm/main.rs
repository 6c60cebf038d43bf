//! `cargo bench --bench vm`: guest-mm's virtual memory, page cache and swap, against the copying that they cannot do without, and the same in
//! the booted guest, against its disks; in one run.
//!
//! Prints one table: for each row guest-mm, then what it is measured by, with the median, least and greatest of the samples, and writes the
//! same to `target/bench/vm.json`, and the README's tables to `target/bench/vm.md`. `-- FILTER` runs the rows whose name contains the text; `--quick` takes a few short
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
mod readme;
mod reclaim;
#[path = "../frame/report.rs"]
mod report;
#[path = "../frame/row.rs"]
mod row;
mod rows;
mod swap;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::run("vm", |args, report| {
        ballast::build()?;
        let mut bench = rows::Bench::new(args.effort);
        for plan in rows::all() {
            report.row(plan.name, || plan.measure(&mut bench))?;
        }
        println!("written: {}", readme::write(report.rows())?.display());
        Ok(())
    })
}
