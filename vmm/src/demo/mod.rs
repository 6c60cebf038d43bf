//! `ballast demo`: two guests, one budget, and memory that goes back and forth between them while programs in both verify
//! every byte.
//!
//! [`plan`] is the script and `play` performs it, with real VMs (`guest`) that are processes of their own, seen
//! through their control sockets (`watch`, [`view`]) and through the host's `/proc` ([`host`]). The [`ledger`] grants
//! memory only after the host has it back. What is seen goes into a [`scene`], which is shown on a terminal (`screen`,
//! [`draw`]), as plain lines (`plain`) or as a `picture`, and ends up as a `summary`.

pub mod draw;
mod error;
mod guest;
mod home;
pub mod host;
mod keys;
pub mod ledger;
pub mod model;
mod options;
mod picture;
mod plain;
pub mod plan;
mod play;
pub mod scene;
mod screen;
mod summary;
mod tether;
pub mod view;
mod watch;

pub use error::DemoError;
pub use options::{DEFAULT_TIME_LIMIT, DemoOptions};
pub use summary::Summary;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use picture::Picture;
use plan::Plan;
use scene::{Scene, Stage};
use screen::Screen;

/// Signals that end the demo in order: its guests are ended and the terminal is given back.
const SIGNALS: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP];

/// How a run is shown while it goes on.
enum Show {
    /// Drawn on the terminal; afterwards the log and the summary.
    Screen(Box<Screen>),
    /// Lines on standard output, and the summary.
    Lines,
    /// Lines on standard error, and one JSON object on standard output.
    Json,
}

/// Runs the demo and shows it. When this returns, both guests and all that they left are gone.
///
/// # Errors
/// Anything that kept the run from being completed, or that was lost in it. The numbers have been printed then, too.
pub fn run(options: &DemoOptions) -> Result<(), DemoError> {
    let plan = Plan::new(options.nr_moves)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(terminal_error)?;
    }
    let stage = Stage::new(Scene::new(&plan, Instant::now()));
    let mut show = Show::of(options);
    let mut picture = Picture::default();
    let (played, shown) = thread::scope(|scope| {
        let playing = scope.spawn(|| play::play(&plan, &stage, &stop, options.time_limit));
        let shown = show_until(
            &mut show,
            &stage,
            &stop,
            || playing.is_finished(),
            || {
                if options.picture.is_some() {
                    picture.consider(&stage.scene());
                }
            },
        );
        if shown.is_err() {
            // Nobody sees the rest.
            stop.store(true, Ordering::Relaxed);
        }
        let played = playing.join();
        (
            played.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            shown,
        )
    });
    let summary = Summary::of(&stage.scene());
    let told = shown.and_then(|()| tell(show, &stage, &summary));
    if let (Some(path), Some(svg)) = (&options.picture, picture.svg()) {
        write_picture(path, &svg)?;
    }
    match (played, told) {
        // It was ended because nobody could see it.
        (Ok(()) | Err(DemoError::Interrupted), Err(error)) => return Err(terminal_error(error)),
        (played, _) => played?,
    }
    let faults = summary.faults(plan.moves().len());
    if faults.is_empty() {
        Ok(())
    } else {
        Err(DemoError::Lost {
            what: faults.join("; "),
        })
    }
}

impl Show {
    fn of(options: &DemoOptions) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if options.json {
            Self::Json
        } else if options.plain || dumb || !io::stdout().is_terminal() {
            Self::Lines
        } else {
            // A terminal to write to, but none to take keys from, which Ctrl-C would then be: lines need none.
            Screen::open().map_or(Self::Lines, |screen| Self::Screen(Box::new(screen)))
        }
    }
}

fn show_until(
    show: &mut Show,
    stage: &Stage,
    stop: &AtomicBool,
    finished: impl Fn() -> bool,
    meanwhile: impl FnMut(),
) -> io::Result<()> {
    match show {
        Show::Json => plain::print(stage, &mut io::stderr(), finished, meanwhile),
        Show::Lines => plain::print(stage, &mut io::stdout(), finished, meanwhile),
        Show::Screen(screen) => {
            screen.show(stage, finished, || stop.store(true, Ordering::Relaxed), meanwhile)
        }
    }
}

/// Prints how it ended: the numbers, and after a drawn run also the log that went away with the screen.
fn tell(show: Show, stage: &Stage, summary: &Summary) -> io::Result<()> {
    let mut out = io::stdout();
    match show {
        Show::Json => writeln!(out, "{}", serde_json::to_string(summary)?)?,
        Show::Lines => writeln!(out, "\n{summary}")?,
        Show::Screen(screen) => {
            drop(screen);
            for line in &stage.scene().log {
                writeln!(out, "{}", plain::text(line))?;
            }
            writeln!(out, "\n{summary}")?;
        }
    }
    out.flush()
}

fn write_picture(path: &Path, svg: &str) -> Result<(), DemoError> {
    fs::write(path, svg).map_err(|source| DemoError::File {
        path: path.to_owned(),
        source,
    })
}

fn terminal_error(source: io::Error) -> DemoError {
    DemoError::File {
        path: "/dev/stdout".into(),
        source,
    }
}
