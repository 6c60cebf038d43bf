//! Server and client together, through a real socket, with a machine that only pretends.

mod documented;
mod events;
mod fake;
mod requests;
mod resizes;

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fake::FakeMachine;

use super::api::{BODY_LIMIT, BalloonRequest, Link, LinkRequest, MAX_WAIT_SECONDS, RateRequest};
use super::client::{ClientError, ControlClient};
use super::handle::MachineHandle;
use super::rate::{RateLimiter, TokenBucket};
use super::registry::{Registration, RegistryError, RuntimeDir};
use super::report::{BalloonReport, BlockReport, ResizeState, VmState, VmStatus};
use super::routes::{MAX_READERS, MAX_WAITERS};
use super::server::{ApiServer, RunningServer};
use crate::journal::{EventKind, Events};
use crate::machine::{
    BalloonError, DiskNumberError, GuestCommandError, IncompleteReason, LinkError, ResizeError,
    ResizeOutcome, ResizePlace, Shortfall, Way,
};
use crate::spec::{GIB, MIB, VmName};

const BOOT: u64 = 512 * MIB;
const REGION: u64 = GIB;

/// A served fake machine in a registry of its own.
struct Fixture {
    _directory: tempfile::TempDir,
    registry: RuntimeDir,
    registration: Registration,
    machine: Arc<FakeMachine>,
    server: Option<RunningServer>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let registry = RuntimeDir::at(directory.path().join("ballast"));
        let machine = Arc::new(FakeMachine::default());
        let server = ApiServer::new().expect("an event loop");
        let (registration, listener) = registry.register(&name("fake")).expect("free");
        let server = server
            .serve(listener, Arc::clone(&machine) as Arc<dyn MachineHandle>)
            .expect("a thread");
        Self {
            _directory: directory,
            registry,
            registration,
            machine,
            server: Some(server),
        }
    }

    fn client(&self) -> ControlClient {
        ControlClient::open_in(&self.registry, &name("fake")).expect("running")
    }

    /// Sends bytes as they are and reads the answer to its end.
    fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.registration.socket()).expect("listening");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The answer to one request with a body.
    fn request(&self, line: &str, body: &str) -> String {
        let length = body.len();
        self.raw(&format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shut_down();
        }
    }
}

fn name(name: &str) -> VmName {
    VmName::new(name).expect("a valid name")
}

/// The message of a refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.expect_err("refused") {
        ClientError::Refused { message, .. } => message,
        other => panic!("{other}"),
    }
}
