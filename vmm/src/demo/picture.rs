//! The screen as an SVG file, for the places where a terminal cannot be shown.
//!
//! Blocks, shades and lines are drawn as shapes, not as letters: fonts differ in how far these reach.

use std::fmt::Write as _;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

use super::draw::{Theme, draw};
use super::model::{self, Mark};
use super::scene::Scene;

/// Columns and rows of the picture.
const SIZE: (u16, u16) = (100, 30);
/// A character cell, in the picture's own units.
const CELL: (f32, f32) = (8.0, 17.0);
/// From the top of a cell to the base line of its letter.
const BASE_LINE: f32 = 13.0;
const MARGIN: f32 = 10.0;
/// So many blocks being emptied show what that looks like; more are no better.
const ENOUGH_LEAVING: usize = 12;

/// Keeps the busiest frame of a run: the one with most blocks on their way.
#[derive(Debug, Default)]
pub(super) struct Picture {
    best: Option<((usize, usize), Buffer)>,
}

impl Picture {
    /// Looks at the scene, and keeps it if more is going on in it than in what was kept before.
    pub(super) fn consider(&mut self, scene: &Scene) {
        let busy = busy(scene);
        if self.best.as_ref().is_none_or(|(best, _)| busy > *best)
            && let Some(buffer) = frame(scene)
        {
            self.best = Some((busy, buffer));
        }
    }

    /// The frame that was kept, as a whole SVG document; `None` before any was.
    #[must_use]
    pub(super) fn svg(&self) -> Option<String> {
        self.best.as_ref().map(|(_, buffer)| svg(buffer))
    }
}

/// How much goes on: blocks that are being emptied first, then blocks that have just changed hands.
fn busy(scene: &Scene) -> (usize, usize) {
    let (mut leaving, mut moved) = (0, 0);
    for shown in scene
        .guests
        .iter()
        .flat_map(|guest| guest.blocks.shown(scene.elapsed()))
    {
        leaving += usize::from(matches!(shown.cell, model::Cell::Leaving(_)));
        moved += usize::from(shown.mark != Mark::Settled);
    }
    (leaving.min(ENOUGH_LEAVING), moved)
}

fn frame(scene: &Scene) -> Option<Buffer> {
    let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1)).ok()?;
    terminal.draw(|frame| draw(frame, scene, Theme::Colour)).ok()?;
    Some(terminal.backend().buffer().clone())
}

fn svg(buffer: &Buffer) -> String {
    let (columns, rows) = (buffer.area.width, buffer.area.height);
    let width = f32::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f32::from(rows) * CELL.1 + 2.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#10141a\"/>\n"
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            column = write_run(&mut out, buffer, row, column);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Writes the longest run of cells that can be drawn as one piece, from `start`; returns where the next begins.
fn write_run(out: &mut String, buffer: &Buffer, row: u16, start: u16) -> u16 {
    let first = &buffer[(start, row)];
    let kind = Shape::of(first);
    let end = run_end(buffer, row, start);
    let x = MARGIN + f32::from(start) * CELL.0;
    let y = MARGIN + f32::from(row) * CELL.1;
    let width = f32::from(end - start) * CELL.0;
    let colour = colour(first);
    // Writing to a string does not fail.
    let _ = match kind {
        Shape::Nothing => Ok(()),
        Shape::Shade(opacity) => writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"{width}\" height=\"{}\" fill=\"{colour}\" opacity=\"{opacity}\"/>",
            y + 1.0,
            CELL.1 - 2.0
        ),
        Shape::Lines(path) => writeln!(
            out,
            "<path transform=\"translate({x} {y})\" d=\"{path}\" stroke=\"{colour}\" fill=\"none\"/>"
        ),
        Shape::Level => writeln!(
            out,
            "<path d=\"M{x} {}h{width}\" stroke=\"{colour}\"/>",
            y + CELL.1 / 2.0
        ),
        Shape::Letter => {
            let text: String = (start..end)
                .map(|column| buffer[(column, row)].symbol())
                .collect();
            let weight = if first.modifier.contains(Modifier::BOLD) {
                " font-weight=\"bold\""
            } else {
                ""
            };
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{}\" textLength=\"{width}\" fill=\"{colour}\"{weight} xml:space=\"preserve\">{}</text>",
                y + BASE_LINE,
                escape(&text)
            )
        }
    };
    end
}

/// Where the run that begins at `start` ends. One space between words stays in the run.
fn run_end(buffer: &Buffer, row: u16, start: u16) -> u16 {
    let first = &buffer[(start, row)];
    let kind = Shape::of(first);
    let mut end = start;
    for column in start + 1..buffer.area.width {
        let next = &buffer[(column, row)];
        if joins(first, kind, next) {
            end = column;
        } else if kind != Shape::Letter || Shape::of(next) != Shape::Nothing || column > end + 1 {
            break;
        }
    }
    end + 1
}

/// Whether a cell continues a run that began with `first`.
fn joins(first: &Cell, kind: Shape, next: &Cell) -> bool {
    Shape::of(next) == kind
        && !matches!(kind, Shape::Lines(_))
        && (first.fg, first.modifier) == (next.fg, next.modifier)
}

/// How a cell is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Nothing,
    /// A filled cell of that opacity.
    Shade(f32),
    /// A horizontal line.
    Level,
    /// Other lines, as a path in a cell.
    Lines(&'static str),
    Letter,
}

impl Shape {
    fn of(cell: &Cell) -> Self {
        match cell.symbol() {
            " " => Self::Nothing,
            "█" => Self::Shade(1.0),
            "▓" => Self::Shade(0.75),
            "▒" => Self::Shade(0.5),
            "░" => Self::Shade(0.25),
            "─" => Self::Level,
            "│" => Self::Lines("M4 0v17"),
            "┌" => Self::Lines("M8 8.5h-4v8.5"),
            "┐" => Self::Lines("M0 8.5h4v8.5"),
            "└" => Self::Lines("M8 8.5h-4v-8.5"),
            "┘" => Self::Lines("M0 8.5h4v-8.5"),
            _ => Self::Letter,
        }
    }
}

/// The colours that the demo uses, on a dark ground.
fn colour(cell: &Cell) -> &'static str {
    match cell.fg {
        Color::Cyan => "#4cc2e0",
        Color::Magenta => "#c792ea",
        Color::Yellow => "#f2c14e",
        Color::Green => "#7fd88f",
        Color::Red => "#ff6b6b",
        Color::DarkGray => "#6b7685",
        _ => "#d7dde5",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::demo::plan::Plan;
    use crate::demo::view::{BlockState, BlockView};

    fn scene() -> Scene {
        Scene::new(&Plan::new(4).expect("four are enough"), Instant::now())
    }

    #[test]
    fn a_picture_is_a_whole_document_with_the_text_of_the_screen() {
        let mut picture = Picture::default();
        assert!(picture.svg().is_none());
        picture.consider(&scene());
        let svg = picture.svg().expect("there was a scene");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(
            svg.contains(">A: 128 of 1152 MiB<") || svg.contains(" A: 128 of 1152 MiB "),
            "{svg}"
        );
        for shape in ["█", "░", "│", "─"] {
            assert!(!svg.contains(shape), "{shape} is drawn, not written");
        }
    }

    #[test]
    fn the_busiest_frame_is_kept() {
        let mut picture = Picture::default();
        let mut busy = scene();
        let leaving = BlockView {
            state: BlockState::GoingOffline,
            free_pages: 0,
            used_pages: 9,
        };
        busy.guests
            .a
            .blocks
            .observe(Duration::ZERO, |index| index < 5, &[leaving; 5]);
        busy.guests.a.total = 168 << 20;
        picture.consider(&busy);
        picture.consider(&scene());
        assert!(picture.svg().is_some_and(|svg| svg.contains("168 of 1152 MiB")));
    }

    #[test]
    fn what_has_a_meaning_in_xml_is_escaped() {
        assert_eq!(escape("<a> & b"), "&lt;a&gt; &amp; b");
    }
}
