//! All streams of a device, and whose turn it is to send to the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::STREAMS_LIMIT;
use super::connection::Connection;
use super::host::{HostStream, StreamKey};

/// Ports at the host's end of streams that the host asks for begin here, as Firecracker's do.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = (1 << 31) - 1;

/// At most [`STREAMS_LIMIT`] streams.
#[derive(Debug)]
pub(super) struct Table<S> {
    streams: BTreeMap<StreamKey, Connection<S>>,
    /// Those with something for the guest; each in the table.
    ready: BTreeSet<StreamKey>,
    /// Whose turn it was last.
    last_turn: StreamKey,
    next_host_port: u32,
}

impl<S: HostStream> Table<S> {
    pub(super) fn new() -> Self {
        Self {
            streams: BTreeMap::new(),
            ready: BTreeSet::new(),
            last_turn: StreamKey::from_token(u64::MAX),
            next_host_port: FIRST_HOST_PORT,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.streams.len() >= STREAMS_LIMIT
    }

    pub(super) fn contains(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key)
    }

    /// Takes in a stream under a key that is not there. Returns whether it has something for the guest.
    pub(super) fn insert(&mut self, key: StreamKey, connection: Connection<S>) -> bool {
        debug_assert!(!self.is_full() && !self.contains(key));
        self.streams.insert(key, connection);
        self.visit(key, |_| ()).is_some_and(|((), ready)| ready)
    }

    /// A key for a stream that the host asks for.
    pub(super) fn free_key(&mut self, guest_port: u32) -> StreamKey {
        loop {
            // Ends: there are fewer streams than ports.
            let host_port = self.next_host_port;
            self.next_host_port = if host_port == LAST_HOST_PORT {
                FIRST_HOST_PORT
            } else {
                host_port + 1
            };
            let key = StreamKey {
                host_port,
                guest_port,
            };
            if !self.contains(key) {
                return key;
            }
        }
    }

    /// Does something to a stream, and forgets it if that was its end. The flag tells whether it has something for the
    /// guest now.
    pub(super) fn visit<R>(
        &mut self,
        key: StreamKey,
        visit: impl FnOnce(&mut Connection<S>) -> R,
    ) -> Option<(R, bool)> {
        let connection = self.streams.get_mut(&key)?;
        let result = visit(connection);
        let (over, ready) = (connection.is_over(), connection.has_work());
        if over {
            self.streams.remove(&key);
        }
        if ready && !over {
            self.ready.insert(key);
        } else {
            self.ready.remove(&key);
        }
        Some((result, ready && !over))
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The next stream that has something for the guest, in turn.
    pub(super) fn next_turn(&mut self) -> Option<StreamKey> {
        let after = (Bound::Excluded(self.last_turn), Bound::Unbounded);
        let key = *self.ready.range(after).next().or_else(|| self.ready.first())?;
        self.last_turn = key;
        Some(key)
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        self.streams.clear();
        self.ready.clear();
    }
}
