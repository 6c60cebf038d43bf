//! What can keep a demo from ending well.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::host::NotReturned;
use super::ledger::LedgerError;
use super::plan::{PlanError, Side};
use super::view::ViewError;
use crate::control::client::ClientError;

/// Why a demo failed. Whatever it is, both guests are gone when it is reported.
#[derive(Debug, Error)]
pub enum DemoError {
    /// What was asked for cannot be played.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file of the demo's own, or the terminal.
    #[error("{path:?} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host does not start a process, or does not show one.
    #[error("guest {side}: {action}")]
    Process {
        /// Whose process.
        side: Side,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A VM ended on its own.
    #[error("guest {side} ended early ({status}): {message}")]
    Died {
        /// Whose VM.
        side: Side,
        /// How its process ended.
        status: String,
        /// The last line of its standard error.
        message: String,
    },
    /// A VM does not do what it is asked.
    #[error("guest {side} cannot be controlled")]
    Client {
        /// Whose VM.
        side: Side,
        /// Why not.
        source: ClientError,
    },
    /// A guest's answer makes no sense.
    #[error("guest {side}")]
    View {
        /// Whose answer.
        side: Side,
        /// What is wrong with it.
        source: ViewError,
    },
    /// Memory would have been granted that is not there.
    #[error("the ledger refuses")]
    Ledger(#[from] LedgerError),
    /// The device says that memory was given up; the host does not have it.
    #[error("guest {side} has unplugged its blocks, but the host does not have the memory back")]
    NotReturned {
        /// The donor.
        side: Side,
        /// What speaks against it.
        source: NotReturned,
    },
    /// A guest did not reach its size.
    #[error("move {number}: guest {side} has {reached} of {target} bytes and goes no further: {reason}")]
    Stuck {
        /// Number of the move, from 1.
        number: usize,
        /// The guest.
        side: Side,
        /// What it has.
        reached: u64,
        /// What it should have.
        target: u64,
        /// Why it stays there, in the machine's words and the guest's.
        reason: String,
    },
    /// Time is up.
    #[error("{seconds} s were not enough: still {doing}")]
    TimedOut {
        /// The time limit.
        seconds: u64,
        /// What was being waited for.
        doing: String,
    },
    /// The user ended it.
    #[error("ended on request before the last move was verified")]
    Interrupted,
    /// Everything was played, and something was lost on the way.
    #[error("not everything is right: {what}")]
    Lost {
        /// What is wrong, in words.
        what: String,
    },
}
