//! `cargo bench --bench migrate`: pages moved off blocks that are to leave. The library by itself, against the copying that it cannot do
//! without, and the booted guest: how long a GiB takes to unplug, and what a running program gets done meanwhile, by each method.
//!
//! Prints one table, and writes the same to `target/bench/migrate.json`, the README's tables to `target/bench/migrate.md` and its picture to
//! `target/bench/migrate.svg`. `-- FILTER` runs the rows whose name contains the text; `--quick` takes a few short samples, and boots each
//! guest once. `tests/benches/README.md` says how it measures.

#[path = "../frame/args.rs"]
mod args;
#[path = "../frame/ballast.rs"]
mod ballast;
mod case;
#[path = "../vmm/ceiling.rs"]
mod ceiling;
#[path = "../frame/clock.rs"]
mod clock;
#[path = "../frame/figure.rs"]
mod figure;
#[path = "../frame/flat.rs"]
mod flat;
mod guest;
mod library;
#[path = "../vm/machine.rs"]
mod machine;
#[path = "../phys/measure.rs"]
mod measure;
#[path = "../phys/memory.rs"]
mod memory;
#[path = "../phys/offline.rs"]
mod offline;
mod picture;
#[path = "../phys/random.rs"]
mod random;
mod readme;
#[path = "../phys/migrate.rs"]
mod remap;
#[path = "../frame/report.rs"]
mod report;
#[path = "../frame/row.rs"]
mod row;
mod rows;
mod slices;
#[path = "../frame/table.rs"]
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    report::run("migrate", |args, report| {
        ballast::build()?;
        let mut bench = rows::Bench::new(args.effort);
        for plan in rows::all() {
            report.row(plan.name, || plan.measure(&mut bench))?;
        }
        println!("written: {}", readme::write(report.rows(), &bench)?.display());
        match picture::write(&bench)? {
            Some(path) => println!("written: {}", path.display()),
            None => println!("no picture: not all of {:?} were measured", picture::CASES),
        }
        Ok(())
    })
}
