//! Raw mode on standard input: every key goes to the guest as it is typed, until the guest has ended.
//!
//! The terminal's own settings come back when the [`RawMode`] is dropped, and, since the VMM aborts on a panic, from
//! a panic hook too. Signals that end the VMM lead to the drop ([`super::EndSignals`]). Output processing stays on,
//! so that messages of the VMM begin at the left margin.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{self, InputModes, LocalModes, OptionalActions, Termios};

/// The settings to give back, while they are changed.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode, while it lives. There is one terminal, so there should be one of these.
#[derive(Debug)]
pub struct RawMode {
    changed: bool,
}

impl RawMode {
    /// Puts the terminal into raw mode; does nothing if standard input is no terminal.
    ///
    /// # Errors
    /// The terminal does not take the settings.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self { changed: false });
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let earlier = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                earlier(info);
            }));
        });
        let own = termios::tcgetattr(&stdin)?;
        let mut raw = own.clone();
        raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.input_modes &= !(InputModes::ICRNL | InputModes::INLCR | InputModes::IXON | InputModes::ISTRIP);
        SAVED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(own);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self { changed: true })
    }

    /// Whether standard input is a terminal, and now in raw mode.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.changed
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if self.changed {
            restore();
        }
    }
}

/// Gives the terminal its own settings back, once.
fn restore() {
    // The hook may run on the thread that holds the lock: then the settings are just being changed.
    let Ok(mut saved) = SAVED.try_lock() else { return };
    if let Some(own) = saved.take() {
        // A terminal that is gone needs nothing back.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &own);
    }
}
