//! The demo on a terminal: the alternate screen, redrawn many times a second, and the keys that end it. The terminal is
//! given back as it was on every way out: at the end, on an error, and on a panic of any thread.

use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;

use super::draw::{Theme, draw};
use super::keys::{Keys, Pressed};
use super::scene::Stage;

/// Between two frames, unless a key comes.
const FRAME: Duration = Duration::from_millis(40);

/// Whether to use colours: not if `NO_COLOR` is set to anything (no-color.org).
#[must_use]
fn theme() -> Theme {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        Theme::Monochrome
    } else {
        Theme::Colour
    }
}

/// The terminal in raw mode with the alternate screen, for as long as the value lives.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    keys: Keys,
}

impl Screen {
    /// Takes the terminal. A panic of any thread restores it, too: `try_init` hooks that.
    ///
    /// # Errors
    /// There is no terminal that can be drawn on and read from.
    pub(super) fn open() -> io::Result<Self> {
        let keys = Keys::open()?;
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        Ok(Self { terminal, keys })
    }

    /// Shows the scene until `finished` says so; its size is looked up for each frame. `stop` is called when the user asks
    /// for the end, `meanwhile` between frames.
    ///
    /// # Errors
    /// The terminal does not take what is drawn, or is gone.
    pub(super) fn show(
        &mut self,
        stage: &Stage,
        finished: impl Fn() -> bool,
        stop: impl Fn(),
        mut meanwhile: impl FnMut(),
    ) -> io::Result<()> {
        let theme = theme();
        while !finished() {
            self.terminal.draw(|frame| draw(frame, &stage.scene(), theme))?;
            meanwhile();
            match self.keys.wait(FRAME)? {
                Pressed::Nothing => {}
                Pressed::End => stop(),
                Pressed::Gone => {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the terminal is gone"));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
