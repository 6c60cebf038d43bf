//! One guest's half of the screen: its blocks, its memory as the guest and as the host count it, and its programs.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Modifier;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::cells::{Grid, Shape};
use super::{SMALLEST, Theme, share};
use crate::demo::plan::Side;
use crate::demo::scene::{GuestScene, Scene};
use crate::demo::view::Program;
use crate::spec::MIB;

/// Rows of a panel beside grid and programs: two of border, bar, host line, migration line.
const OTHER_ROWS: u16 = 5;
/// Most programs that are listed.
const MOST_PROGRAMS: usize = 4;

/// Rows of a panel on a screen of this size.
pub(super) fn height(screen: Rect, nr_blocks: usize, programs: usize) -> u16 {
    shape(screen, nr_blocks).rows + program_rows(programs) + OTHER_ROWS
}

fn program_rows(programs: usize) -> u16 {
    u16::try_from(programs.clamp(1, MOST_PROGRAMS)).unwrap_or(1)
}

/// The grid's arrangement: it may be taller where the log keeps enough lines.
fn shape(screen: Rect, nr_blocks: usize) -> Shape {
    let inner = (screen.width / 2).saturating_sub(2);
    let max_rows = if screen.height > SMALLEST.1 + 4 { 8 } else { 4 };
    Shape::fit(nr_blocks, inner, max_rows)
}

/// Draws one guest.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, scene: &Scene, side: Side, theme: Theme) {
    let guest = &scene.guests[side];
    let pid = guest.pid.map_or(String::new(), |pid| format!(" pid {pid} "));
    let title = format!(" {side}: {} of {} MiB ", guest.total / MIB, guest.limit / MIB);
    let block = Block::bordered()
        .border_style(theme.dim())
        .title(Span::styled(title, theme.side(side).add_modifier(Modifier::BOLD)))
        .title(Line::styled(pid, theme.dim()).right_aligned());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let shape = shape(frame.area(), guest.blocks.nr_blocks());
    let [grid, bar, host, migration, programs] = Layout::vertical([
        Constraint::Length(shape.rows),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(0),
    ])
    .areas(inner);
    let cells = guest.blocks.shown(scene.elapsed());
    frame.render_widget(
        Grid {
            side,
            theme,
            shape,
            cells,
        },
        grid,
    );
    frame.render_widget(Paragraph::new(memory_bar(guest, side, bar.width, theme)), bar);
    frame.render_widget(Paragraph::new(host_line(guest, theme)), host);
    frame.render_widget(Paragraph::new(migration_line(guest, theme)), migration);
    let lines: Vec<Line<'_>> = guest
        .programs
        .iter()
        .take(MOST_PROGRAMS)
        .map(|program| program_line(program, programs.width, theme))
        .collect();
    frame.render_widget(Paragraph::new(lines), programs);
}

/// All the memory that the guest can have: what its programs hold, what it has beyond that, what it has not.
fn memory_bar(guest: &GuestScene, side: Side, width: u16, theme: Theme) -> Line<'static> {
    let used: u64 = guest.programs.iter().map(|program| program.rss_kib * 1024).sum();
    let text = format!(" {:>4} MiB used", used / MIB);
    let width = usize::from(width).saturating_sub(text.len());
    let used_cells = share(used, guest.limit, width);
    let total_cells = share(guest.total, guest.limit, width).max(used_cells);
    Line::from(vec![
        Span::styled("█".repeat(used_cells), theme.side(side)),
        Span::styled("░".repeat(total_cells - used_cells), theme.side(side)),
        Span::styled("·".repeat(width - total_cells), theme.dim()),
        Span::raw(text),
    ])
}

fn host_line(guest: &GuestScene, theme: Theme) -> Line<'static> {
    Line::from(vec![
        Span::styled("on the host ", theme.dim()),
        Span::raw(format!("{} MiB resident", guest.resident / MIB)),
    ])
}

fn migration_line(guest: &GuestScene, theme: Theme) -> Line<'static> {
    let counters = &guest.counters;
    Line::from(vec![
        Span::styled("moved inside ", theme.dim()),
        Span::raw(format!(
            "{} pages ({} huge)",
            short(counters.pages_migrated),
            short(counters.huge_pages_migrated)
        )),
    ])
}

/// What a program is and what it has verified; the command gives way to the numbers.
fn program_line(program: &Program, width: u16, theme: Theme) -> Line<'static> {
    let ok = format!(" {} ok ", short(program.checks_ok));
    let bad = format!("{} bad", short(program.checks_failed));
    let state = if program.is_alive() {
        String::new()
    } else {
        format!("[{}] ", program.state)
    };
    let room = usize::from(width).saturating_sub(ok.len() + bad.len());
    let command = format!("{state}{}", program.command);
    let command = format!("{:<room$}", whole_words(&command, room));
    let alarm = program.checks_failed > 0 || !program.is_alive();
    Line::from(vec![
        Span::styled(command, if alarm { theme.bad() } else { theme.dim() }),
        Span::styled(ok, theme.good()),
        Span::styled(
            bad,
            if program.checks_failed > 0 {
                theme.bad()
            } else {
                theme.dim()
            },
        ),
    ])
}

/// As many of the first words as `room` characters hold; a first word that is too long is cut.
fn whole_words(text: &str, room: usize) -> &str {
    let Some((cut, next)) = text.char_indices().nth(room) else {
        return text;
    };
    if next == ' ' {
        return &text[..cut];
    }
    text[..cut]
        .rfind(' ')
        .map_or(&text[..cut], |space| &text[..space])
}

/// A count in at most five characters: exact while that fits, then with a unit of ten to the third power.
pub(super) fn short(count: u64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = count;
    for unit in UNITS {
        if value < 10_000 || unit == "E" {
            return format!("{value}{unit}");
        }
        value /= 1000;
    }
    count.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_cut_between_words_where_there_are_several() {
        assert_eq!(whole_words("hog fill=70% seed=1", 30), "hog fill=70% seed=1");
        assert_eq!(whole_words("hog fill=70% seed=1", 13), "hog fill=70%");
        assert_eq!(whole_words("hog fill=70% seed=1", 12), "hog fill=70%");
        assert_eq!(whole_words("hog fill=70% seed=1", 11), "hog");
        assert_eq!(whole_words("hög", 2), "hö");
        assert_eq!(whole_words("hog", 0), "");
    }
}
