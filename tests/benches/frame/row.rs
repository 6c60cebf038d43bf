//! A row of the table: what was measured, in which unit, with which goal.

#![allow(dead_code, reason = "each bench uses its part")]

use crate::figure::Figure;

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    /// Nanoseconds an operation.
    Nanoseconds,
    /// Microseconds an operation.
    Microseconds,
    /// Milliseconds an operation.
    Milliseconds,
    /// Mebibytes.
    Mebibytes,
    /// Per cent of all there is.
    Percent,
    /// Bytes.
    Bytes,
    /// Pages.
    Pages,
    /// Flushes of translation caches.
    Flushes,
}

impl Unit {
    /// As printed behind a figure.
    pub(crate) const fn symbol(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
            Self::Bytes => "B",
            Self::Pages => "pages",
            Self::Flushes => "flushes",
        }
    }

    /// Nanoseconds in one of it, if it is a unit of time.
    pub(crate) const fn nanoseconds(self) -> Option<f64> {
        match self {
            Self::Nanoseconds => Some(1.0),
            Self::Microseconds => Some(1e3),
            Self::Milliseconds => Some(1e6),
            Self::Percent | Self::Bytes | Self::Mebibytes | Self::Pages | Self::Flushes => None,
        }
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Nothing: the peers tell what the figure is worth.
    Compared,
    /// The figure itself, at most.
    AtMost { target: f64, stretch: f64 },
    /// The figure itself, at least.
    AtLeast { target: f64, stretch: f64 },
    /// The figure as a share of that peer's, at most.
    AtMostOf { peer: &'static str, target: f64 },
    /// The peer's time as a share of ours, at least: the rate reached, of the peer's.
    RateOf {
        peer: &'static str,
        target: f64,
        stretch: f64,
    },
}

/// Measured.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// Who is measured.
    pub(crate) who: &'static str,
    pub(crate) unit: Unit,
    pub(crate) goal: Goal,
    pub(crate) ours: Figure,
    pub(crate) peers: Vec<(String, Figure)>,
}

/// Not measured.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) name: &'static str,
    /// What the host lacks.
    pub(crate) reason: String,
}

impl Row {
    /// Our figure as a share of a peer's.
    pub(crate) fn ratio(&self, peer: &Figure) -> f64 {
        self.ours.median / peer.median
    }

    /// The goal in words, and whether it was met. `None` when the goal is a share of a peer that did not take part.
    pub(crate) fn verdict(&self) -> Option<String> {
        let met = |met| if met { "met" } else { "missed" };
        let value = self.ours.median;
        let unit = self.unit.symbol();
        Some(match self.goal {
            Goal::Compared => return None,
            Goal::AtMost { target, stretch } => format!(
                "<= {target} {unit}: {}; {stretch}: {}",
                met(value <= target),
                met(value <= stretch)
            ),
            Goal::AtLeast { target, stretch } => format!(
                ">= {target} {unit}: {}; {stretch}: {}",
                met(value >= target),
                met(value >= stretch)
            ),
            Goal::AtMostOf { peer, target } => {
                let ratio = self.ratio(self.peer(peer)?);
                format!("<= {target} x {peer}: {}", met(ratio <= target))
            }
            Goal::RateOf {
                peer,
                target,
                stretch,
            } => {
                let rate = 1.0 / self.ratio(self.peer(peer)?);
                format!(
                    ">= {target} of {peer}: {} ({rate:.2}); {stretch}: {}",
                    met(rate >= target),
                    met(rate >= stretch)
                )
            }
        })
    }

    fn peer(&self, name: &str) -> Option<&Figure> {
        self.peers
            .iter()
            .find(|(peer, _)| peer == name)
            .map(|(_, figure)| figure)
    }
}
