//! The picture of the repository's README: what a program gets done while a GiB, all of it in use, leaves, by each method.
//! `target/bench/migrate.svg`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use crate::case::{self, Case};
use crate::guest::Run;
use crate::rows::Bench;
use crate::table;

/// What is shown, one below the other.
pub(crate) const CASES: [Case; 3] = [case::ALL[4], case::ALL[5], case::ALL[6]];

/// Pixels: of all, and of a panel's plot.
const WIDTH: f64 = 820.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 40.0;
const PLOT: f64 = 96.0;
const PANEL: f64 = 140.0;
/// Milliseconds that are shown before and after.
const AROUND_MS: f64 = 250.0;
const PAGES_PER_MIB: f64 = 256.0;

const BACKGROUND: &str = "#10141a";
const TEXT: &str = "#d7dde5";
const DIM: &str = "#6b7685";
const CURVE: &str = "#4cc2e0";
const SHADE: &str = "#f2c14e";

/// Draws the middle run of each case and returns where the picture is; `None` if one of them was not measured.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(bench: &Bench) -> std::io::Result<Option<PathBuf>> {
    let runs: Vec<(Case, &Run)> = CASES
        .into_iter()
        .filter_map(|case| {
            let runs = bench.known(case)?;
            Some((case, runs.get(runs.len() / 2)?))
        })
        .collect();
    if runs.len() < CASES.len() {
        return Ok(None);
    }
    let path = table::directory()?.join("migrate.svg");
    fs::write(&path, svg(&runs))?;
    Ok(Some(path))
}

/// What all panels share.
struct Scale {
    end_ms: f64,
    most_pages: f64,
}

impl Scale {
    fn x(&self, ms: f64) -> f64 {
        let share = (ms + AROUND_MS) / (self.end_ms + 2.0 * AROUND_MS);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, pages: f64) -> f64 {
        PLOT * (1.0 - pages / self.most_pages)
    }

    fn shows(&self, ms: f64) -> bool {
        (-AROUND_MS..=self.end_ms + AROUND_MS).contains(&ms)
    }
}

fn svg(runs: &[(Case, &Run)]) -> String {
    let end_ms = runs
        .iter()
        .map(|(_, run)| run.slices.shrinking_ms())
        .fold(0.0, f64::max);
    let scale = Scale {
        end_ms,
        most_pages: most_pages(runs) * 1.05,
    };
    let height = TOP + PANEL * runs.len() as f64 + 16.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    let slice_ms = runs.first().map_or(0.0, |(_, run)| run.slices.ms);
    let title = format!(
        "What a program checks of its memory, in MiB/s, while 1 GiB of it is unplugged (slices of {slice_ms:.0} ms)"
    );
    text(&mut out, (18.0, 24.0), TEXT, &title);
    for (nth, (case, run)) in runs.iter().enumerate() {
        let top = TOP + PANEL * nth as f64 + 22.0;
        let _ = writeln!(out, "<g transform=\"translate(0 {top})\">");
        panel(&mut out, &scale, *case, run);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn most_pages(runs: &[(Case, &Run)]) -> f64 {
    let pages = runs
        .iter()
        .flat_map(|(_, run)| run.slices.points().map(|(_, pages)| pages));
    pages.fold(1.0, f64::max)
}

fn panel(out: &mut String, scale: &Scale, case: Case, run: &Run) {
    let (before, during) = (run.slices.before(), run.slices.during());
    let label = format!(
        "{}: {:.2} s; median {:.0} %, worst 1 % of slices {:.0} %, longest pause {:.1} ms",
        case.method,
        run.ms / 1e3,
        during.median / before.median * 100.0,
        during.worst / before.median * 100.0,
        during.longest_ms,
    );
    text(out, (LEFT, -6.0), TEXT, &label);
    let (from, to) = (scale.x(0.0), scale.x(run.slices.shrinking_ms()));
    let _ = writeln!(
        out,
        "<rect x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{PLOT}\" fill=\"{SHADE}\" opacity=\"0.14\"/>",
        to - from
    );
    axes(out, scale, run.slices.ms);
    let mut path = String::new();
    for (ms, pages) in run.slices.points().filter(|(ms, _)| scale.shows(*ms)) {
        let step = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{step}{:.1} {:.1}", scale.x(ms), scale.y(pages));
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" stroke=\"{CURVE}\" stroke-width=\"1\" fill=\"none\"/>"
    );
}

/// Most marks of time, and how far apart they may be in milliseconds.
const MOST_MARKS: f64 = 10.0;
const STEPS_MS: [f64; 8] = [50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0];

/// A line for nothing, and marks of time; rates at the left.
fn axes(out: &mut String, scale: &Scale, slice_ms: f64) {
    let mut steps = STEPS_MS.into_iter();
    let step_ms = steps
        .find(|step| scale.end_ms / step <= MOST_MARKS)
        .unwrap_or(60_000.0);
    let (left, right) = (scale.x(-AROUND_MS), scale.x(scale.end_ms + AROUND_MS));
    let _ = writeln!(
        out,
        "<path d=\"M{left:.1} {PLOT}H{right:.1}\" stroke=\"{DIM}\" fill=\"none\"/>"
    );
    let mib_a_second = |pages: f64| pages / PAGES_PER_MIB * 1000.0 / slice_ms;
    let top = scale.most_pages / 1.05;
    for pages in [0.0, top / 2.0, top] {
        let at = (8.0, scale.y(pages) + 4.0);
        text(out, at, DIM, &format!("{:>6.0}", mib_a_second(pages)));
    }
    let mut ms = 0.0;
    while ms <= scale.end_ms + AROUND_MS {
        let x = scale.x(ms);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {PLOT}v4\" stroke=\"{DIM}\" fill=\"none\"/>"
        );
        text(out, (x - 16.0, PLOT + 17.0), DIM, &format!("{:.2} s", ms / 1e3));
        ms += step_ms;
    }
}

fn text(out: &mut String, (x, y): (f64, f64), colour: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{colour}\" xml:space=\"preserve\">{text}</text>"
    );
}
