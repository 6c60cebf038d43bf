//! What a child process has written so far, readable while it still runs.
//!
//! A thread per stream copies bytes into a buffer; tests wait for text to appear in it. A stream that ends
//! wakes every waiter, so that a dead child fails a test at once instead of at the deadline.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::wait::DEADLINE;

/// The bytes of one output stream, from its beginning. Cheap to clone: all clones share the buffer.
#[derive(Clone, Default)]
pub struct Transcript {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Records `stream` until it ends, in a thread of its own.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let writer = transcript.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = stream.read(&mut chunk).unwrap_or(0);
                let mut progress = writer.lock();
                progress.bytes.extend_from_slice(&chunk[..count]);
                progress.ended = count == 0;
                writer.shared.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        transcript
    }

    /// Everything so far, carriage returns removed, broken UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).replace('\r', "")
    }

    /// What has been written after byte `position`.
    pub fn text_after(&self, position: usize) -> String {
        String::from_utf8_lossy(&self.lock().bytes[position..]).replace('\r', "")
    }

    /// Number of bytes so far: a position for [`Self::wait_for_after`].
    pub fn position(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Waits until `needle` has been written, however long ago.
    ///
    /// # Panics
    /// When the stream ends or the deadline passes first; the message holds the transcript.
    pub fn wait_for(&self, needle: &str) {
        self.wait_for_after(0, needle);
    }

    /// Waits until `needle` appears after byte `position`; answers the text between the two and the position
    /// behind the needle.
    ///
    /// # Panics
    /// When the stream ends or the deadline passes first; the message holds the transcript.
    pub fn wait_for_after(&self, position: usize, needle: &str) -> (String, usize) {
        let deadline = Instant::now() + DEADLINE;
        let mut progress = self.lock();
        loop {
            if let Some(found) = find(&progress.bytes[position..], needle.as_bytes()) {
                let between = String::from_utf8_lossy(&progress.bytes[position..position + found]);
                return (between.replace('\r', ""), position + found + needle.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let why = match (progress.ended, left.is_zero()) {
                (true, _) => "the stream ended",
                (false, true) => "the deadline passed",
                (false, false) => {
                    let woken = self.shared.changed.wait_timeout(progress, left);
                    progress = woken.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            drop(progress);
            panic!("{why} without {needle:?}; it says:\n{}", self.text());
        }
    }

    /// Waits for the end of the stream and answers all of its text.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_for_end(&self) -> String {
        let begun = Instant::now();
        let mut progress = self.lock();
        while !progress.ended {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            assert!(!left.is_zero(), "the stream did not end within the deadline");
            let woken = self.shared.changed.wait_timeout(progress, left);
            progress = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(progress);
        self.text()
    }

    /// The buffer holds plain bytes, whole after every step: a panicking holder leaves nothing broken.
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.shared
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_across_writes_and_after_a_position() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let transcript = Transcript::of(reader);
        std::io::Write::write_all(&mut writer, b"one tw").unwrap();
        transcript.wait_for("one");
        std::io::Write::write_all(&mut writer, b"o\r\none two").unwrap();
        let (between, position) = transcript.wait_for_after(4, "one ");
        assert_eq!((between.as_str(), position), ("two\n", 13));
        drop(writer);
        assert_eq!(transcript.wait_for_end(), "one two\none two");
    }

    #[test]
    #[should_panic(expected = "the stream ended without \"ready\"")]
    fn a_stream_that_ends_fails_the_waiter_at_once() {
        Transcript::of(&b"not read"[..]).wait_for("ready");
    }
}
