//! What every bench does around its rows: arguments, one table, `target/bench/NAME.json`, and how busy the machine was.

#![allow(dead_code, reason = "each bench uses its part")]

use std::error::Error;
use std::process::ExitCode;

use crate::args::Args;
use crate::row::{Missing, Row};
use crate::table;

/// The rows so far.
pub(crate) struct Report {
    /// A text that the names of all rows measured have in them.
    filter: String,
    rows: Vec<Row>,
    missing: Vec<Missing>,
    /// Before the first row.
    load_before: Option<String>,
}

/// The bench `name`: reads its arguments, lets `measure` hand in the rows, and writes them. Fails with a line on standard error.
pub(crate) fn run(
    name: &'static str,
    measure: impl FnOnce(&Args, &mut Report) -> Result<(), Box<dyn Error>>,
) -> ExitCode {
    match try_run(name, measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(
    name: &'static str,
    measure: impl FnOnce(&Args, &mut Report) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let args = Args::from_command_line(name, std::env::args().skip(1))?;
    let mut report = Report {
        filter: args.filter.clone(),
        rows: Vec::new(),
        missing: Vec::new(),
        load_before: None,
    };
    measure(&args, &mut report)?;
    report.close(name)
}

impl Report {
    /// Measures the row `name` if it is asked for, and prints it. What `measure` gives instead of a row is why the host cannot have it.
    ///
    /// # Errors
    /// Those of `measure`: the bench ends.
    pub(crate) fn row(
        &mut self,
        name: &'static str,
        measure: impl FnOnce() -> Result<Result<Row, String>, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        if !name.contains(&self.filter) {
            return Ok(());
        }
        if self.load_before.is_none() {
            self.load_before = Some(load_average()?);
        }
        match measure()? {
            Ok(row) => {
                table::print(&row, self.rows.is_empty());
                self.rows.push(row);
            }
            Err(reason) => {
                let row = Missing { name, reason };
                table::print_missing(&row);
                self.missing.push(row);
            }
        }
        Ok(())
    }

    /// What was measured so far.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn close(self, name: &str) -> Result<(), Box<dyn Error>> {
        let Some(before) = self.load_before else {
            return Err(format!("no row's name contains {:?}", self.filter).into());
        };
        println!("\nload average before: {before}, after: {}", load_average()?);
        let path = table::write_json(name, &self.rows, &self.missing)?;
        println!("written: {}", path.display());
        Ok(())
    }
}

/// Processes that wanted a processor in the last minute, as the kernel averages them: above that of one, others disturbed the figures.
fn load_average() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
