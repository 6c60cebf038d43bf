//! The demo on a terminal: the alternate screen, redrawn several times a second, and the keys that end it. The terminal is
//! given back as it was on every way out: at the end, on an error, and on a panic of any thread.

use std::io;
use std::time::Duration;

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;

use super::draw::{Theme, draw};
use super::scene::Stage;

/// Between two frames, unless a key comes.
const FRAME: Duration = Duration::from_millis(40);

/// Whether to use colours: not if `NO_COLOR` is set to anything (no-color.org).
#[must_use]
pub(super) fn theme() -> Theme {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        Theme::Monochrome
    } else {
        Theme::Colour
    }
}

/// Shows the scene until `finished` says so. `stop` is called when the user asks for the end, `meanwhile` between frames.
///
/// # Errors
/// The terminal does not take what is drawn, or is gone.
pub(super) fn show(
    stage: &Stage,
    finished: impl Fn() -> bool,
    stop: impl Fn(),
    mut meanwhile: impl FnMut(),
) -> io::Result<()> {
    let theme = theme();
    let mut screen = Screen::open()?;
    while !finished() {
        screen.0.draw(|frame| draw(frame, &stage.scene(), theme))?;
        meanwhile();
        if event::poll(FRAME)? && asks_for_the_end(&event::read()?) {
            stop();
        }
    }
    Ok(())
}

/// `q`, Escape, or Ctrl-C, which is an ordinary key in raw mode.
fn asks_for_the_end(event: &Event) -> bool {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press,
        ..
    }) = event
    else {
        return false;
    };
    match code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// The terminal in raw mode with the alternate screen, for as long as the value lives.
struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal. A panic of any thread restores it, too: `try_init` hooks that.
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| ratatui::restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agreed_keys_end_the_demo() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        for (code, modifiers) in [
            (KeyCode::Char('q'), KeyModifiers::NONE),
            (KeyCode::Esc, KeyModifiers::NONE),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(asks_for_the_end(&key(code, modifiers)));
        }
        for (code, modifiers) in [
            (KeyCode::Char('c'), KeyModifiers::NONE),
            (KeyCode::Char('x'), KeyModifiers::CONTROL),
            (KeyCode::Enter, KeyModifiers::NONE),
        ] {
            assert!(!asks_for_the_end(&key(code, modifiers)));
        }
        assert!(!asks_for_the_end(&Event::Resize(80, 24)));
    }
}
