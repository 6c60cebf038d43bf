//! The demo without a terminal: one line an event.

use std::io::{self, Write};
use std::time::Duration;

use super::scene::{Line, Stage, Tone};

/// How long one wait for news lasts, and with it how soon an end without news is noticed.
const PATIENCE: Duration = Duration::from_millis(100);

/// Prints each line of the log once, as it comes, until `finished` says so and all is printed; `meanwhile` is called
/// between lines.
///
/// # Errors
/// `out` does not take them.
pub(super) fn print(
    stage: &Stage,
    out: &mut dyn Write,
    finished: impl Fn() -> bool,
    mut meanwhile: impl FnMut(),
) -> io::Result<()> {
    let mut printed = 0;
    loop {
        // Asked first, so that a line said before the end is never missed.
        let last = finished();
        let lines = stage.lines_after(printed, if last { Duration::ZERO } else { PATIENCE });
        for line in &lines {
            writeln!(out, "{}", text(line))?;
        }
        out.flush()?;
        printed += lines.len();
        meanwhile();
        if last {
            return Ok(());
        }
    }
}

/// One line of the log as it is printed.
#[must_use]
pub(super) fn text(line: &Line) -> String {
    let mark = if line.tone == Tone::Bad { "!" } else { " " };
    format!("{:>7.2} s {mark} {}", line.at.as_secs_f64(), line.text)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::demo::plan::Plan;
    use crate::demo::scene::Scene;

    #[test]
    fn every_line_is_printed_once_and_in_order_and_nothing_else() {
        let plan = Plan::new(4).expect("four are enough");
        let stage = Stage::new(Scene::new(&plan, Instant::now()));
        let over = AtomicBool::new(false);
        let mut out = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..100 {
                    stage.say(Tone::Note, format!("event {number}"));
                }
                stage.say(Tone::Bad, "alarm".into());
                over.store(true, Ordering::SeqCst);
            });
            print(&stage, &mut out, || over.load(Ordering::SeqCst), || {}).expect("a vector takes all");
        });
        let text = String::from_utf8(out).expect("plain text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 101);
        for (number, line) in lines[..100].iter().enumerate() {
            assert!(line.ends_with(&format!(" s   event {number}")), "{line:?}");
        }
        assert!(lines[100].ends_with(" s ! alarm"), "{:?}", lines[100]);
    }
}
