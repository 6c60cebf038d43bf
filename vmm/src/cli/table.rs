//! Text for people: columns that line up, sizes and times short enough to read.

use std::fmt::Write;

/// Lines up cells under their heads. The last column is not padded.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with only its heads.
    pub(super) fn new(heads: &[&str]) -> Self {
        Self {
            rows: vec![heads.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A size in three or four digits: `512 MiB`, `1.25 GiB`. For eyes only; nothing that has to be exact.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1)
        .take_while(|unit| bytes >> (10 * (unit + 1)) > 0)
        .count();
    let shift = 10 * unit;
    let hundredths = (u128::from(bytes) * 100) >> shift;
    let (whole, fraction) = (hundredths / 100, hundredths % 100);
    match fraction {
        0 => format!("{whole} {}", UNITS[unit]),
        fraction if fraction % 10 == 0 => format!("{whole}.{} {}", fraction / 10, UNITS[unit]),
        fraction => format!("{whole}.{fraction:02} {}", UNITS[unit]),
    }
}

/// A span of time in two units at most: `42s`, `3m07s`, `5h00m`, `2d03h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tails() {
        let mut table = Table::new(&["A", "LONG", "B"]);
        table.row(vec!["wide cell".into(), "x".into(), String::new()]);
        assert_eq!(table.render(), "A          LONG  B\nwide cell  x\n");
    }

    #[test]
    fn sizes_are_short_and_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (640 << 20, "640 MiB"),
            (5 << 28, "1.25 GiB"),
            ((1 << 30) - 1, "1023.99 MiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (187, "3m07s"),
            (18_000, "5h00m"),
            (86_400 * 2 + 3 * 3600 + 59, "2d03h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
