//! The demo on a terminal: a pure function from a [`Scene`] to a frame, so that the same code draws for a terminal, for a
//! test and for a picture.
//!
//! ```text
//!  ballast demo   move 3/6: A → B 512 MiB, A gives blocks up                     12.3 s
//!  host AAAAAAAAAAAAAAAAAAAAABBBBBBBBBBBBBBB······  1290 of 1456 MiB held, peak 1301
//! ┌ A ── 640 of 1152 MiB ────────────────┐┌ B ── 640 of 1152 MiB ────────────────┐
//! │ one cell a block                     ││                                      │
//! │ bar of memory, resident memory, programs and what they have checked          │
//! └──────────────────────────────────────┘└──────────────────────────────────────┘
//!  legend
//!  event log
//! ```
//! From 80 x 24 upward everything has its place; a smaller terminal shows the upper left part of it.

mod cells;
mod panel;

pub use cells::legend;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::Paragraph;

use super::plan::Side;
use super::scene::{Phase, Scene, Step, Tone};
use crate::spec::MIB;

/// The smallest terminal on which everything is visible: columns and rows.
pub const SMALLEST: (u16, u16) = (80, 24);

/// Which styles may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// The sixteen colours of every terminal.
    Colour,
    /// Bold and dim only; the shapes alone tell the states apart.
    Monochrome,
}

impl Theme {
    /// A foreground colour, where colours are used.
    fn colour(self, colour: Color) -> Style {
        match self {
            Self::Colour => Style::new().fg(colour),
            Self::Monochrome => Style::new(),
        }
    }

    fn side(self, side: Side) -> Style {
        self.colour(match side {
            Side::A => Color::Cyan,
            Side::B => Color::Magenta,
        })
    }

    fn dim(self) -> Style {
        match self {
            Self::Colour => Style::new().fg(Color::DarkGray),
            Self::Monochrome => Style::new().add_modifier(Modifier::DIM),
        }
    }

    fn good(self) -> Style {
        self.colour(Color::Green)
    }

    fn bad(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }
}

/// Draws the whole scene into the frame.
pub fn draw(frame: &mut Frame<'_>, scene: &Scene, theme: Theme) {
    let area = frame.area();
    let programs = Side::BOTH
        .map(|side| scene.guests[side].programs.len())
        .into_iter()
        .max()
        .unwrap_or(0);
    let panel_height = panel::height(area, scene.guests.a.blocks.nr_blocks(), programs);
    let [head, gauge, panels, legend_at, log] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(panel_height),
        Constraint::Length(1),
        Constraint::Min(0),
    ])
    .areas(area);
    draw_head(frame, head, scene, theme);
    draw_budget(frame, gauge, scene, theme);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(panels);
    panel::draw(frame, left, scene, Side::A, theme);
    panel::draw(frame, right, scene, Side::B, theme);
    frame.render_widget(Paragraph::new(legend(theme)), legend_at);
    draw_log(frame, log, scene, theme);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, scene: &Scene, theme: Theme) {
    let elapsed = format!("{:.1} s ", scene.elapsed().as_secs_f64());
    let width = u16::try_from(elapsed.len()).unwrap_or(0);
    let [left, right] = Layout::horizontal([Constraint::Min(0), Constraint::Length(width)]).areas(area);
    let title = TextLine::from(vec![
        Span::styled(" ballast demo", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw("   "),
        Span::styled(phase_text(scene), theme.colour(Color::Yellow)),
    ]);
    frame.render_widget(Paragraph::new(title), left);
    frame.render_widget(Paragraph::new(elapsed), right);
}

/// What is going on, in words.
fn phase_text(scene: &Scene) -> String {
    match scene.phase {
        Phase::Starting => "both guests boot and fill their memory".into(),
        Phase::Moving { number, what, step } => {
            let doing = match step {
                Step::Fill => "programs fill their memory".into(),
                Step::Shrink => format!("{} gives blocks up", what.from),
                Step::Check => "does the host have it back?".into(),
                Step::Grow => format!("{} takes blocks", what.to()),
            };
            format!(
                "move {number}/{}: {} → {} {} MiB, {doing}",
                scene.nr_moves,
                what.from,
                what.to(),
                what.bytes / MIB
            )
        }
        Phase::Verifying => "all moves made: every program goes over its memory once more".into(),
        Phase::Over => "over".into(),
    }
}

/// The budget as a bar: what A's process holds, what B's holds, what is free of it; a mark where the peak was.
fn draw_budget(frame: &mut Frame<'_>, area: Rect, scene: &Scene, theme: Theme) {
    let text = format!(
        " {} of {} MiB, peak {} ",
        scene.resident() / MIB,
        scene.budget / MIB,
        scene.peak / MIB
    );
    let label = " host ";
    let taken = text.chars().count() + label.len();
    let width = usize::from(area.width).saturating_sub(taken);
    let a = share(scene.guests.a.resident, scene.budget, width);
    let both = share(scene.resident(), scene.budget, width).max(a);
    let peak = share(scene.peak, scene.budget, width).clamp(both, width);
    let spans = vec![
        Span::raw(label),
        Span::styled("█".repeat(a), theme.side(Side::A)),
        Span::styled("▒".repeat(both - a), theme.side(Side::B)),
        Span::styled("·".repeat(peak - both), theme.dim()),
        Span::styled(if peak < width { "|" } else { "" }, theme.dim()),
        Span::styled("·".repeat((width - peak).saturating_sub(1)), theme.dim()),
        Span::raw(text),
    ];
    frame.render_widget(Paragraph::new(TextLine::from(spans)), area);
}

/// The newest lines that fit, the newest last.
fn draw_log(frame: &mut Frame<'_>, area: Rect, scene: &Scene, theme: Theme) {
    let first = scene.log.len().saturating_sub(usize::from(area.height));
    let lines: Vec<TextLine<'_>> = scene.log[first..]
        .iter()
        .map(|line| {
            let style = match line.tone {
                Tone::Note => Style::new(),
                Tone::Good => theme.good(),
                Tone::Bad => theme.bad(),
            };
            TextLine::from(vec![
                Span::styled(format!(" {:>6.1} ", line.at.as_secs_f64()), theme.dim()),
                Span::styled(line.text.as_str(), style),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// `part` of `whole` in cells out of `width`, rounded to the nearest, never more than `width`.
fn share(part: u64, whole: u64, width: usize) -> usize {
    if whole == 0 {
        return 0;
    }
    let cells = (u128::from(part) * width as u128 + u128::from(whole) / 2) / u128::from(whole);
    usize::try_from(cells).map_or(width, |cells| cells.min(width))
}

#[cfg(test)]
mod tests;
