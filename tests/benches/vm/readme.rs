//! The tables of the repository's README, as they are put there: `target/bench/vm.md`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use crate::figure::Figure;
use crate::row::Row;
use crate::rows::TWO_LIST;
use crate::table;

/// How the names of the guest's rows begin.
const GUEST: &str = "guest: ";

/// Writes the tables of what was measured; returns where.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(rows: &[Row]) -> std::io::Result<PathBuf> {
    let (schemes, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.who == TWO_LIST);
    let (guest, library): (Vec<&Row>, Vec<&Row>) =
        others.into_iter().partition(|row| row.name.starts_with(GUEST));
    let mut text = String::new();
    for (who, rows) in [("guest-mm", library), ("guest", guest)] {
        if !rows.is_empty() {
            let head = format!("| row | {who} | peer | rate |\n|---|---|---|---|\n");
            text.push_str(&head);
            rows.into_iter().for_each(|row| text.push_str(&line(row)));
            text.push('\n');
        }
    }
    if !schemes.is_empty() {
        text.push_str("| workload | where | time | scanned for one freed | pages read from disks | pages swapped out |\n|---|---|---|---|---|---|\n");
        text.push_str(&workloads(&schemes));
    }
    let path = table::directory()?.join("vm.md");
    fs::write(&path, text)?;
    Ok(path)
}

/// A row with its peers: the rate is the peer's time divided by ours.
fn line(row: &Row) -> String {
    let value = |figure: &Figure| format!("{} {}", table::number(figure.median), row.unit.symbol());
    let joined = |each: &dyn Fn(&(String, Figure)) -> String| {
        let all: Vec<String> = row.peers.iter().map(each).collect();
        all.join(", ")
    };
    let peers = joined(&|(name, figure)| format!("{name} {}", value(figure)));
    let rates = joined(&|(_, figure)| format!("{:.2}", 1.0 / row.ratio(figure)));
    let name = row.name.strip_prefix(GUEST).unwrap_or(row.name);
    format!("| {name} | {} | {peers} | {rates} |\n", value(&row.ours))
}

/// A line for each workload and place: its figures by both schemes.
fn workloads(rows: &[&Row]) -> String {
    let mut text = String::new();
    let of = |row: &Row| {
        row.name
            .rsplit_once(", ")
            .map(|(workload, _)| workload.to_owned())
    };
    for rows in rows.chunk_by(|one, next| of(one) == of(next)) {
        let workload = rows.first().and_then(|row| of(row)).unwrap_or_default();
        let (place, name) = match workload.strip_prefix(GUEST) {
            Some(name) => ("guest", name),
            None => ("library", workload.as_str()),
        };
        let _ = write!(text, "| {name} | {place} |");
        for row in rows {
            let both = row.peers.iter().map(|(_, launder)| launder);
            let values: Vec<String> = core::iter::once(&row.ours)
                .chain(both)
                .map(|figure| table::number(figure.median))
                .collect();
            let unit = if row.unit.nanoseconds().is_some() {
                " ms"
            } else {
                ""
            };
            let _ = write!(text, " {}{unit} |", values.join(" / "));
        }
        text.push('\n');
    }
    text
}
