//! The table on standard output, and `target/bench/NAME.json`.

#![allow(dead_code, reason = "each bench uses its part")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::row::{Missing, Row};

/// Prints a row: who is measured first, then each peer.
pub(crate) fn print(row: &Row, is_first: bool) {
    if is_first {
        println!(
            "{:<40} {:<30} {:>9} {:>9} {:>9} {:>7}  goal",
            "what", "who", "median", "min", "max", "ratio"
        );
    }
    let line = |what: &str, who: &str, figure: &crate::figure::Figure, rest: &str| {
        println!(
            "{what:<40} {who:<30} {:>9} {:>9} {:>9} {rest}",
            number(figure.median),
            number(figure.min),
            number(figure.max)
        );
    };
    let what = format!("{} ({})", row.name, row.unit.symbol());
    let verdict = row.verdict().unwrap_or_default();
    line(&what, row.who, &row.ours, &format!("{:>7}  {verdict}", ""));
    for (peer, figure) in &row.peers {
        line("", peer, figure, &format!("{:>7}", ratio(row.ratio(figure))));
    }
}

/// Two decimals, unless the peer has nothing at all.
fn ratio(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.2}")
    } else {
        "-".into()
    }
}

/// Two digits or more.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value < 0.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Prints a row that could not be measured.
pub(crate) fn print_missing(missing: &Missing) {
    println!("{:<40} NOT MEASURED: {}", missing.name, missing.reason);
}

/// Writes `bench/NAME.json` into cargo's target directory: an entry for each row and peer, and one for each row that could
/// not be measured. Returns its path.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_json(name: &str, rows: &[Row], missing: &[Missing]) -> std::io::Result<PathBuf> {
    let unmeasured = missing
        .iter()
        .map(|row| json!({"name": row.name, "value": null, "not_measured": row.reason}));
    let entries: Vec<Value> = rows.iter().flat_map(entries).chain(unmeasured).collect();
    let path = directory()?.join(format!("{name}.json"));
    std::fs::write(&path, format!("{:#}\n", Value::from(entries)))?;
    Ok(path)
}

/// The folder `bench` in cargo's target directory, which is there then.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn directory() -> std::io::Result<PathBuf> {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = tmp.parent().unwrap_or(Path::new(".")).join("bench");
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

/// `ns` and `peer_ns` are there for times; `value` and `peer_value` hold whatever the unit says.
fn entries(row: &Row) -> Vec<Value> {
    let entry = |peer: Option<&(String, crate::figure::Figure)>| {
        let mut entry = json!({
            "name": row.name,
            "unit": row.unit.symbol(),
            "value": row.ours.median,
            "min": row.ours.min,
            "max": row.ours.max,
            "peer": peer.map(|(name, _)| name),
            "peer_value": peer.map(|(_, figure)| figure.median),
            "peer_min": peer.map(|(_, figure)| figure.min),
            "peer_max": peer.map(|(_, figure)| figure.max),
            "ratio": peer.map(|(_, figure)| row.ratio(figure)),
            "goal": row.verdict(),
        });
        if let Some(factor) = row.unit.nanoseconds() {
            entry["ns"] = json!(row.ours.median * factor);
            entry["peer_ns"] = json!(peer.map(|(_, figure)| figure.median * factor));
        }
        entry
    };
    if row.peers.is_empty() {
        return vec![entry(None)];
    }
    row.peers.iter().map(|peer| entry(Some(peer))).collect()
}
