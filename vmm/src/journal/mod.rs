//! What happens to a VM, as a stream of events that anybody may read while it runs.
//!
//! Whoever knows of something tells it to an [`Events`]; the newest [`KEPT`] events are kept. A reader asks for what came
//! after the last one it has seen. One that was too slow, or came too late, is told how many it has missed: nobody waits
//! for readers, and a guest that causes events without end costs no more memory than a quiet one.

mod kind;

pub use kind::{BlockChange, Event, EventKind, ResizeStep};

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

/// How many events are kept.
pub const KEPT: usize = 1024;

/// One VM's events: a handle that is cheap to clone. Lock order: a leaf.
#[derive(Debug, Clone)]
pub struct Events(Arc<Journal>);

#[derive(Debug)]
struct Journal {
    begun: Instant,
    ring: Mutex<Ring>,
    /// How far the stream has got, for those who wait for more.
    progress: watch::Sender<Progress>,
}

/// How far a stream has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sequence number of the last event; 0 before the first.
    pub last: u64,
    /// Nothing more will come.
    pub ended: bool,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Arc<Event>>,
    last: u64,
    ended: bool,
}

impl Events {
    /// A stream in which nothing has happened yet. Times are counted from `begun`.
    #[must_use]
    pub fn new(begun: Instant) -> Self {
        Self(Arc::new(Journal {
            begun,
            ring: Mutex::new(Ring::default()),
            progress: watch::Sender::new(Progress::default()),
        }))
    }

    /// Tells all readers of something. Never waits for them. After [`Self::end`] nobody hears it.
    pub fn emit(&self, kind: EventKind) {
        let mut ring = self.ring();
        if ring.ended {
            return;
        }
        ring.last += 1;
        let milliseconds = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let event = Event {
            sequence: ring.last,
            milliseconds,
            kind,
        };
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Arc::new(event));
        self.publish(&ring);
    }

    /// Nothing more will come.
    pub fn end(&self) {
        let mut ring = self.ring();
        ring.ended = true;
        self.publish(&ring);
    }

    /// The events after number `seen`, in order; 0 for all that are kept. If some of them are gone, the first one is an
    /// [`EventKind::Missed`] with the number of the last of those.
    #[must_use]
    pub fn after(&self, seen: u64) -> Vec<Arc<Event>> {
        let ring = self.ring();
        let oldest = ring.last + 1 - ring.kept.len() as u64;
        let mut events = Vec::new();
        if seen + 1 < oldest {
            events.push(Arc::new(Event {
                sequence: oldest - 1,
                milliseconds: ring.kept.front().map_or(0, |event| event.milliseconds),
                kind: EventKind::Missed {
                    count: oldest - 1 - seen,
                },
            }));
        }
        let skipped = ring.kept.partition_point(|event| event.sequence <= seen);
        events.extend(ring.kept.iter().skip(skipped).cloned());
        events
    }

    /// For waiting: changes whenever something happens. A receiver never holds anybody up.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    fn publish(&self, ring: &Ring) {
        self.0.progress.send_replace(Progress {
            last: ring.last,
            ended: ring.ended,
        });
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: u64) -> Events {
        let events = Events::new(Instant::now());
        for cause in 1..=count {
            events.emit(EventKind::Reboot {
                cause: cause.to_string(),
            });
        }
        events
    }

    fn sequences(events: &[Arc<Event>]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn a_reader_gets_each_event_once_and_in_order() {
        let events = events(5);
        assert_eq!(sequences(&events.after(0)), [1, 2, 3, 4, 5]);
        assert_eq!(sequences(&events.after(3)), [4, 5]);
        assert_eq!(sequences(&events.after(5)), [0_u64; 0]);
        assert_eq!(sequences(&events.after(u64::MAX - 1)), [0_u64; 0]);
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_much_it_has_missed() {
        let kept = KEPT as u64;
        let events = events(kept + 10);
        for seen in [0, 7] {
            let read = events.after(seen);
            assert_eq!(read.len(), KEPT + 1);
            assert_eq!(read[0].sequence, 10);
            assert_eq!(read[0].kind, EventKind::Missed { count: 10 - seen });
            assert_eq!(read[1].sequence, 11);
        }
        assert_eq!(events.after(10)[0].sequence, 11, "nothing missed");
    }

    #[test]
    fn whoever_waits_hears_of_each_event_and_of_the_end() {
        let events = events(0);
        let mut progress = events.progress();
        assert!(!progress.has_changed().unwrap());
        events.emit(EventKind::Reboot { cause: "x".into() });
        assert!(progress.has_changed().unwrap());
        let now = *progress.borrow_and_update();
        assert_eq!((now.last, now.ended), (1, false));
        events.end();
        assert!(progress.borrow_and_update().ended);
        events.emit(EventKind::Reboot { cause: "y".into() });
        assert_eq!(events.after(1).len(), 0, "after the end nothing happens");
    }
}
