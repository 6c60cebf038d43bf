//! The tables of the repository's README, as they are put there: `target/bench/migrate.md`.

use std::fs;
use std::path::PathBuf;

use crate::case;
use crate::figure::Figure;
use crate::row::Row;
use crate::rows::{self, Bench, OURS, Part};
use crate::table;

/// Writes the tables of what was measured; returns where.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(rows: &[Row], bench: &Bench) -> std::io::Result<PathBuf> {
    let mut text = String::new();
    let library: Vec<&Row> = rows.iter().filter(|row| row.who == OURS).collect();
    if !library.is_empty() {
        text.push_str("| row | guest-mm | peer | rate | goal |\n|---|---|---|---|---|\n");
        library.into_iter().for_each(|row| text.push_str(&line(row)));
        text.push('\n');
    }
    if case::ALL.iter().any(|case| bench.known(*case).is_some()) {
        text.push_str(
            "| a GiB of which is in use, method | time | of copying and discarding | throughput meanwhile, median | worst 1 % | \
             longest pause | pages moved | pages left memory | flushes |\n|---|---|---|---|---|---|---|---|---|\n",
        );
    }
    for case in case::ALL {
        let find = |part| rows.iter().find(|row| row.name == rows::name(case, part));
        let [
            Some(time),
            Some(median),
            Some(worst),
            Some(pause),
            Some(pages),
            Some(flushes),
        ] = Part::ALL.map(find)
        else {
            continue;
        };
        let value = |row: &Row| format!("{} {}", table::number(row.ours.median), row.unit.symbol());
        let peer = |row: &Row| row.peers.first().map(|(_, figure)| *figure);
        let beside = |row: &Row, unit: &str| {
            let peer = peer(row).map_or_else(String::new, |peer| table::number(peer.median));
            format!("{} (before: {peer}{unit})", value(row))
        };
        let of_ceiling = peer(time).map_or(f64::NAN, |peer| time.ratio(&peer));
        let left = peer(pages).map_or(0.0, |peer| peer.median);
        text.push_str(&format!(
            "| {case} | {} | {of_ceiling:.2} | {} | {} | {} | {:.0} | {left:.0} | {:.0} |\n",
            value(time),
            value(median),
            beside(worst, ""),
            beside(pause, ""),
            pages.ours.median,
            flushes.ours.median,
        ));
    }
    let path = table::directory()?.join("migrate.md");
    fs::write(&path, text)?;
    Ok(path)
}

/// A row of the library: the rate is the peer's time divided by ours.
fn line(row: &Row) -> String {
    let value = |figure: &Figure| format!("{} {}", table::number(figure.median), row.unit.symbol());
    let (peer, rate) = match row.peers.first() {
        Some((name, figure)) => (
            format!("{name} {}", value(figure)),
            format!("{:.2}", 1.0 / row.ratio(figure)),
        ),
        None => (String::new(), String::new()),
    };
    let goal = row.verdict().unwrap_or_default();
    format!(
        "| {} | {} | {peer} | {rate} | {goal} |\n",
        row.name,
        value(&row.ours)
    )
}
