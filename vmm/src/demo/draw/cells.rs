//! The grid of blocks: which shape and colour a block has, and how many cells go into a row.
//!
//! The shapes alone tell the states apart; colour only repeats what the shape says.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use super::Theme;
use crate::demo::model::{Cell, Fill, Mark, Shown};
use crate::demo::plan::Side;

/// Most columns that one cell is wide.
const WIDEST_CELL: u16 = 4;

/// The blocks of one guest as a widget.
pub(super) struct Grid<I> {
    /// Whose they are.
    pub(super) side: Side,
    /// How they are coloured.
    pub(super) theme: Theme,
    /// How they are arranged.
    pub(super) shape: Shape,
    /// The blocks, in address order.
    pub(super) cells: I,
}

/// How cells are arranged: row by row in address order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Cells in a row.
    pub(super) columns: u16,
    /// Rows.
    pub(super) rows: u16,
    /// Terminal columns of a cell, the gap after it included; without a gap if it is 1.
    pub(super) cell_width: u16,
}

impl Shape {
    /// The arrangement of `nr_cells` in at most `width` columns and `max_rows` rows that has the largest cells; rows hold
    /// a power of two of them, so that a row is a round number of bytes. If nothing fits, as many as fit are shown.
    pub(super) fn fit(nr_cells: usize, width: u16, max_rows: u16) -> Self {
        let nr_cells = u16::try_from(nr_cells).unwrap_or(u16::MAX);
        (3..=10)
            .map(|power| 1_u16 << power)
            .filter(|columns| *columns <= width)
            .map(|columns| Self {
                columns,
                rows: nr_cells.div_ceil(columns),
                cell_width: (width / columns).min(WIDEST_CELL),
            })
            .filter(|shape| shape.rows <= max_rows)
            .max_by_key(|shape| (shape.cell_width, shape.columns))
            .unwrap_or(Self {
                columns: width.max(1),
                rows: nr_cells.div_ceil(width.max(1)).min(max_rows),
                cell_width: 1,
            })
    }
}

/// The shape of a block.
fn glyph(shown: Shown) -> char {
    match (shown.cell, shown.mark) {
        (Cell::Unplugged, Mark::Left) => '◇',
        (Cell::Unplugged, _) => '·',
        (Cell::Plugging, _) => '+',
        (Cell::Online(_), Mark::Arrived) => '◆',
        (Cell::Online(Fill::Free), _) => '░',
        (Cell::Online(Fill::Low), _) => '▒',
        (Cell::Online(Fill::High), _) => '▓',
        (Cell::Online(Fill::Full), _) => '█',
        (Cell::Leaving(Fill::Free) | Cell::Offline, _) => '-',
        (Cell::Leaving(_), _) => '»',
    }
}

fn style(shown: Shown, side: Side, theme: Theme) -> Style {
    match (shown.cell, shown.mark) {
        (Cell::Unplugged, Mark::Left) => theme.colour(Color::Yellow),
        (Cell::Unplugged, _) => theme.dim(),
        (Cell::Plugging, _) | (Cell::Online(_), Mark::Arrived) => theme.good().add_modifier(Modifier::BOLD),
        (Cell::Online(_), _) => theme.side(side),
        (Cell::Leaving(_) | Cell::Offline, _) => theme.colour(Color::Yellow).add_modifier(Modifier::BOLD),
    }
}

impl<I: Iterator<Item = Shown>> Widget for Grid<I> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let columns = usize::from(self.shape.columns);
        for (index, shown) in self.cells.enumerate() {
            let row = u16::try_from(index / columns).unwrap_or(u16::MAX);
            let column = u16::try_from(index % columns).unwrap_or(u16::MAX);
            if row >= self.shape.rows.min(area.height) {
                break;
            }
            let style = style(shown, self.side, self.theme);
            let width = self.shape.cell_width;
            for offset in 0..width.saturating_sub(1).max(1) {
                let x = area.x + column * width + offset;
                if let Some(cell) = buffer.cell_mut((x, area.y + row)).filter(|_| x < area.right()) {
                    cell.set_char(glyph(shown)).set_style(style);
                }
            }
        }
    }
}

/// One line that explains the shapes.
#[must_use]
pub fn legend(theme: Theme) -> Line<'static> {
    let settled = |cell| Shown {
        cell,
        mark: Mark::Settled,
    };
    let entries = [
        (settled(Cell::Unplugged), "host"),
        (settled(Cell::Plugging), "plugging"),
        (
            Shown {
                cell: Cell::Online(Fill::Free),
                mark: Mark::Arrived,
            },
            "new",
        ),
        (settled(Cell::Online(Fill::Free)), "free"),
        (settled(Cell::Online(Fill::High)), "used"),
        (settled(Cell::Online(Fill::Full)), "full"),
        (settled(Cell::Leaving(Fill::High)), "leaving"),
        (settled(Cell::Offline), "empty"),
        (
            Shown {
                cell: Cell::Unplugged,
                mark: Mark::Left,
            },
            "gone",
        ),
    ];
    let mut spans = Vec::new();
    for (shown, name) in entries {
        let mut shape = glyph(shown).to_string();
        if shown.cell == Cell::Online(Fill::High) {
            shape.insert(0, glyph(settled(Cell::Online(Fill::Low))));
        }
        spans.push(Span::raw(" "));
        spans.push(Span::styled(shape, style(shown, Side::A, theme)));
        spans.push(Span::styled(format!(" {name} "), theme.dim()));
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_uses_the_largest_cells_that_fit() {
        let shape = |width, rows| {
            let shape = Shape::fit(128, width, rows);
            (shape.columns, shape.rows, shape.cell_width)
        };
        assert_eq!(shape(38, 4), (32, 4, 1));
        assert_eq!(shape(38, 8), (16, 8, 2));
        assert_eq!(shape(78, 4), (32, 4, 2));
        assert_eq!(shape(78, 8), (16, 8, 4));
        assert_eq!(shape(200, 4), (32, 4, 4));
    }

    #[test]
    fn a_grid_that_cannot_fit_shows_as_much_as_there_is_room_for() {
        for (width, rows) in [(0, 0), (1, 1), (5, 2), (38, 3), (38, 0)] {
            let shape = Shape::fit(128, width, rows);
            assert!(
                shape.rows <= rows && shape.columns * shape.cell_width <= width.max(1),
                "{shape:?}"
            );
        }
    }

    #[test]
    fn every_state_has_a_shape_of_its_own_without_colour() {
        let mut seen = std::collections::BTreeMap::new();
        for cell in [
            Cell::Unplugged,
            Cell::Plugging,
            Cell::Online(Fill::Free),
            Cell::Online(Fill::Low),
            Cell::Online(Fill::High),
            Cell::Online(Fill::Full),
            Cell::Leaving(Fill::Full),
            Cell::Offline,
        ] {
            let shape = glyph(Shown {
                cell,
                mark: Mark::Settled,
            });
            assert_eq!(seen.insert(shape, cell), None);
        }
    }
}
