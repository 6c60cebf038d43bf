//! Where the guest's serial output goes: a bounded buffer, and a thread that writes it out.
//!
//! A vCPU that prints waits while the buffer is full ([`OutputWriter::wait_for_room`], before it takes any lock), which
//! slows a chatty guest down to its reader instead of losing what it says. But the VMM never waits for a reader:
//! writing itself does not wait, and when the VM ends, waiting vCPUs are let go, and what is left in the buffer gets
//! a short time to be written.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

/// From so many waiting bytes on, vCPUs wait for room.
const LIMIT: usize = 64 << 10;
/// Bytes that wait to be written, at most: room for what those write who had room a moment ago, or do not wait.
const HARD_LIMIT: usize = LIMIT + (16 << 10);
/// How long the last bytes may take.
const FAREWELL: Duration = Duration::from_secs(2);
const STACK: usize = 128 << 10;

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// To a file, a pipe, a terminal.
    File(File),
    /// Nowhere.
    Nothing,
}

impl Sink {
    /// Standard output.
    ///
    /// # Errors
    /// It is closed.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::File(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    /// The end of a file, which is created if need be.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn append(path: &Path) -> io::Result<Self> {
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .map(Self::File)
    }
}

/// Output under way. Dropping it is [`Output::finish`].
#[derive(Debug)]
pub struct Output {
    shared: Arc<Shared>,
}

/// Puts bytes into the buffer. Writing never fails and never waits: a sink that fails, or is full, loses what follows.
#[derive(Debug, Clone)]
pub struct OutputWriter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// Signalled whenever there is room again.
    room: Option<EventFd>,
    /// No writer waits for room any more.
    closing: bool,
    /// Nothing is written out any more: all was written, or the sink failed, or there is none.
    done: bool,
}

impl Output {
    /// Begins to write to `sink`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(sink: Sink) -> io::Result<Self> {
        let done = matches!(sink, Sink::Nothing);
        let state = State {
            waiting: Vec::new(),
            room: None,
            closing: false,
            done,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        if let Sink::File(file) = sink {
            let theirs = Arc::clone(&shared);
            thread::Builder::new()
                .name("serial-out".into())
                .stack_size(STACK)
                .spawn(move || theirs.write_out(file))?;
        }
        Ok(Self { shared })
    }

    /// Something to write to.
    #[must_use]
    pub fn writer(&self) -> OutputWriter {
        OutputWriter {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Lets waiting writers go, and waits for what is in the buffer to be written; not for long.
    pub fn finish(&self) {
        let mut state = self.shared.lock();
        state.closing = true;
        self.shared.changed.notify_all();
        let deadline = Instant::now() + FAREWELL;
        while !state.done {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.finish();
    }
}

impl OutputWriter {
    /// Waits until the reader has caught up, or is not waited for any more. To be called without any lock that the
    /// event loop may want.
    pub fn wait_for_room(&self) {
        let mut state = self.shared.lock();
        while state.waiting.len() >= LIMIT && !state.closing && !state.done {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`Self::wait_for_room`] would wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let state = self.shared.lock();
        state.waiting.len() >= LIMIT && !state.closing && !state.done
    }

    /// Has `room` signalled whenever the reader has caught up, for those who cannot wait; instead of any other.
    pub fn signal_room(&self, room: EventFd) {
        self.shared.lock().room = Some(room);
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        if !state.done && state.waiting.len() + bytes.len() <= HARD_LIMIT {
            state.waiting.extend_from_slice(bytes);
            self.shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: writes until it is told to close and has written everything, or the sink fails.
    fn write_out(&self, mut sink: File) {
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.closing {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let bytes = std::mem::take(&mut state.waiting);
            self.tell_of_room(&state);
            drop(state);
            if bytes.is_empty() || sink.write_all(&bytes).is_err() {
                break;
            }
        }
        let mut state = self.lock();
        state.done = true;
        state.waiting = Vec::new();
        self.tell_of_room(&state);
    }

    fn tell_of_room(&self, state: &State) {
        self.changed.notify_all();
        if let Some(room) = &state.room {
            // A full counter is a signalled one.
            let _ = room.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn pipe() -> (io::PipeReader, Sink) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Sink::File(File::from(OwnedFd::from(writer))))
    }

    #[test]
    fn what_is_written_comes_out_in_order() {
        let (mut reader, sink) = pipe();
        let output = Output::start(sink).unwrap();
        let mut writer = output.writer();
        for byte in b"one two three" {
            writer.write_all(&[*byte]).unwrap();
        }
        drop(output);
        let mut text = [0; 13];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"one two three");
    }

    #[test]
    fn a_reader_that_never_reads_does_not_hold_the_vm() {
        let (_reader, sink) = pipe();
        let output = Output::start(sink).unwrap();
        let mut writer = output.writer();
        let guest = thread::spawn(move || {
            // More than the pipe and the buffer together take.
            (0..1000).for_each(|_| {
                writer.wait_for_room();
                writer.write_all(&[b'x'; 1024]).unwrap();
            });
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!guest.is_finished(), "a full buffer holds the guest back");
        output.finish();
        guest.join().unwrap();
    }

    #[test]
    fn a_sink_that_fails_loses_output_and_nothing_else() {
        let (reader, sink) = pipe();
        drop(reader);
        let output = Output::start(sink).unwrap();
        let mut writer = output.writer();
        (0..1000).for_each(|_| writer.write_all(&[b'x'; 1024]).unwrap());
        output.finish();
    }
}
