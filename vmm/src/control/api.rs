//! The language of the control socket: HTTP/1.1 with JSON bodies. Both ends take paths, bodies and limits from here.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /ballast/v1/vm` | | [`VmStatus`](super::report::VmStatus) |
//! | `GET /ballast/v1/blocks` | | [`BlocksAnswer`] |
//! | `PUT /ballast/v1/memory` | [`ResizeRequest`] | [`ResizeReport`](super::report::ResizeReport) |
//! | `POST /ballast/v1/guest` | [`GuestRequest`] | [`GuestAnswer`] |
//! | `POST /ballast/v1/balloon` | [`BalloonRequest`] | [`BalloonReport`](super::report::BalloonReport) |
//! | `POST /ballast/v1/pause` | | [`ChangeAnswer`] |
//! | `POST /ballast/v1/resume` | | [`ChangeAnswer`] |
//! | `POST /ballast/v1/link` | [`LinkRequest`] | [`ChangeAnswer`] |
//! | `POST /ballast/v1/rate-limiter` | [`RateRequest`] | [`ChangeAnswer`] |
//! | `POST /ballast/v1/stop` | | [`StopAnswer`] |
//! | `GET /ballast/v1/events?after=NUMBER&follow=true` | | [`Event`](crate::journal::Event)s, one a line, until the VM ends |
//!
//! Every success is 200 with a JSON object, or a stream of them. Every failure, an unknown path too, is 400 with a [`Fault`].

use serde::{Deserialize, Serialize};

use super::rate::RateLimiter;
use super::report::BlockReport;

/// State of the VM.
pub const VM_PATH: &str = "/ballast/v1/vm";
/// Blocks of the hot-plug regions.
pub const BLOCKS_PATH: &str = "/ballast/v1/blocks";
/// Size of the guest's memory.
pub const MEMORY_PATH: &str = "/ballast/v1/memory";
/// The guest's control channel.
pub const GUEST_PATH: &str = "/ballast/v1/guest";
/// The balloon.
pub const BALLOON_PATH: &str = "/ballast/v1/balloon";
/// Holds the guest.
pub const PAUSE_PATH: &str = "/ballast/v1/pause";
/// Lets it go on.
pub const RESUME_PATH: &str = "/ballast/v1/resume";
/// The wire of a network interface.
pub const LINK_PATH: &str = "/ballast/v1/link";
/// What a disk may do in a second.
pub const RATE_PATH: &str = "/ballast/v1/rate-limiter";
/// What happens.
pub const EVENTS_PATH: &str = "/ballast/v1/events";
/// The end of the VM.
pub const STOP_PATH: &str = "/ballast/v1/stop";

/// The longest request body in bytes, the same as Firecracker's.
pub const BODY_LIMIT: usize = 51_200;
/// The longest that one request may wait for a resize, in seconds: a day.
pub const MAX_WAIT_SECONDS: u64 = 86_400;
/// How long the guest has to answer a command, in seconds.
pub const GUEST_SECONDS: u64 = 10;

/// Body of `PUT /ballast/v1/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// Boot memory and hot-plugged memory that the guest is to have together, in bytes.
    pub total_bytes: u64,
    /// The hot-plug region that makes the whole change, counted from 0; absent or null: any, growing begins with the first
    /// and shrinking with the last.
    #[serde(default)]
    pub region: Option<usize>,
    /// How long to wait for the guest, at most [`MAX_WAIT_SECONDS`]; absent or null: only ask, and answer at once.
    #[serde(default)]
    pub wait_seconds: Option<u64>,
    /// With `wait_seconds`: when the time is up, or the one who asked has gone, the guest is asked to keep what it has then. Absent: it goes on.
    #[serde(default)]
    pub gives_up: bool,
}

/// Body of `POST /ballast/v1/guest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestRequest {
    /// The command with its arguments, such as `meminfo`.
    pub command: String,
}

/// Body of `POST /ballast/v1/balloon`, such as `{"do":"statistics-interval","seconds":5}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BalloonRequest {
    /// Only say how it stands.
    Show,
    /// Ask the guest for statistics and wait for them.
    Statistics,
    /// Ask for statistics at once, and so often from then on.
    StatisticsInterval {
        /// Seconds from one question to the next, at most [`crate::spec::MAX_STATS_SECONDS`]; 0: no more.
        seconds: u32,
    },
    /// Ask the guest for its free pages.
    StartHinting,
    /// No more; the guest may use what it has hinted.
    StopHinting,
}

/// Body of `POST /ballast/v1/link`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// The interface, counted from 0 in the order of `--net`.
    #[serde(default)]
    pub interface: usize,
    /// Whether frames are to go through.
    pub link: Link,
}

/// Whether frames go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// They do.
    Up,
    /// They do not: what either side sends is lost, and the guest is told.
    Down,
}

/// Body of `POST /ballast/v1/rate-limiter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateRequest {
    /// The disk, counted from 0 in the order of `--disk`.
    #[serde(default)]
    pub disk: usize,
    /// What it may do from now on. A bucket that is absent stays as it is, one of size 0 limits nothing; one that is new
    /// begins full.
    pub rate_limiter: RateLimiter,
}

/// Answer to `GET /ballast/v1/blocks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksAnswer {
    /// The hot-plug regions, in the order of their addresses.
    pub regions: Vec<BlockReport>,
}

/// Answer to `POST /ballast/v1/guest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAnswer {
    /// What the guest said, as it said it.
    pub answer: String,
}

/// Answer to `POST /ballast/v1/pause`, `POST /ballast/v1/resume`, `POST /ballast/v1/link` and `POST /ballast/v1/rate-limiter`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeAnswer {
    /// Whether anything has changed by the request.
    pub changed: bool,
}

/// Answer to `POST /ballast/v1/stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopAnswer {
    /// The process that is ending now.
    pub pid: u32,
}

/// Answer to every request that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong, in one line, with the value and the rule.
    pub fault_message: String,
}
