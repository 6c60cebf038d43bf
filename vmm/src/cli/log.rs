//! Log lines: on standard error, in the form of all other messages there, `ballast: LEVEL: text`. Times are left out:
//! whoever collects the lines has them.

use std::fmt;
use std::io;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The words for log levels on the command line.
pub(super) fn levels() -> impl TypedValueParser<Value = LevelFilter> {
    let words = ["off", "error", "warn", "info", "debug", "trace"];
    PossibleValuesParser::new(words).try_map(|word| word.parse::<LevelFilter>())
}

/// Sends what is logged at that level and above to standard error.
pub(super) fn to_standard_error(level: LevelFilter) {
    // It fails only when there is a subscriber already, which then has the lines.
    let _ = tracing::subscriber::set_global_default(subscriber(level, io::stderr));
}

/// What turns events into lines for `writer`.
fn subscriber<W>(level: LevelFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(writer);
    lines.with_ansi(false).event_format(Line).finish()
}

/// The form of a line.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "ballast: {}: ", word(*event.metadata().level()))?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// The word for a level.
fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_is_a_message_like_any_other() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = subscriber(LevelFilter::WARN, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("not this");
            tracing::warn!(block = 7, "a block");
        });
        let text = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text, "ballast: warning: a block block=7\n");
    }
}
