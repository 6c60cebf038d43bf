//! The stream of events as the body of an answer: JSON lines, from what is kept to what happens while somebody reads.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::journal::{Events, Progress};

/// What a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// The last event it has seen; 0 for none.
    pub(super) after: u64,
    /// Whether it also wants what has not happened yet.
    pub(super) follow: bool,
}

impl Wish {
    /// What the query of a request says: `after=NUMBER` and `follow=true` or `false`, each at most once.
    ///
    /// # Errors
    /// Which part is none of these.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let (mut after, mut follow) = (None, None);
        for part in query
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty())
        {
            let is_new = match part.split_once('=') {
                Some(("after", number)) => number.parse().is_ok_and(|number| after.replace(number).is_none()),
                Some(("follow", word)) => word.parse().is_ok_and(|word| follow.replace(word).is_none()),
                _ => false,
            };
            if !is_new {
                return Err(format!(
                    "query {part:?}: after=NUMBER and follow=true or follow=false, each at most once"
                ));
            }
        }
        Ok(Self {
            after: after.unwrap_or(0),
            follow: follow.unwrap_or(true),
        })
    }
}

/// One reader. Dropped with its connection.
struct Reader {
    events: Events,
    progress: watch::Receiver<Progress>,
    wish: Wish,
    _permit: OwnedSemaphorePermit,
}

/// The lines that `wish` asks for, each as soon as there is room for it. `permit` is given back when the reader has gone
/// or the VM has ended.
pub(super) fn body(events: Events, wish: Wish, permit: OwnedSemaphorePermit) -> Body {
    let reader = Reader {
        progress: events.progress(),
        events,
        wish,
        _permit: permit,
    };
    Body::from_stream(stream::unfold(reader, |mut reader| async {
        let lines = reader.next().await?;
        Some((Ok::<_, Infallible>(lines), reader))
    }))
}

impl Reader {
    /// The next lines; `None` when there will be none.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Looked at first, so that nothing is missed that happens after the look at the events.
            let ended = self.progress.borrow_and_update().ended;
            let events = self.events.after(self.wish.after);
            if let Some(last) = events.last() {
                self.wish.after = last.sequence;
                let mut lines = Vec::new();
                for event in &events {
                    // Plain data, which can always be written.
                    serde_json::to_writer(&mut lines, &**event).ok()?;
                    lines.push(b'\n');
                }
                return Some(lines.into());
            }
            if ended || !self.wish.follow || self.progress.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_where_to_begin_and_whether_to_stay() {
        let wish = |query| Wish::parse(query).map(|wish| (wish.after, wish.follow));
        assert_eq!(wish(None), Ok((0, true)));
        assert_eq!(wish(Some("")), Ok((0, true)));
        assert_eq!(wish(Some("follow=false&after=12")), Ok((12, false)));
        for bad in [
            "after=x",
            "after=-1",
            "follow=1",
            "since=1",
            "after",
            "after=1&after=2",
        ] {
            let message = wish(Some(bad)).expect_err(bad);
            assert!(message.contains("after=NUMBER"), "{message}");
        }
    }
}
