//! The other end of the control socket: a small blocking client, used by the subcommands, the demo and the tests.
//!
//! ```no_run
//! use std::time::Duration;
//! use vmm::control::client::ControlClient;
//! use vmm::spec::VmName;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = ControlClient::open(&VmName::new("web-1")?)?;
//! let report = vm.resize(2 << 30, Some(Duration::from_secs(30)))?;
//! println!("{} of {} bytes", report.reached_bytes, report.target_bytes);
//! println!("{}", vm.guest("meminfo")?);
//! # Ok(())
//! # }
//! ```

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::api::{
    BALLOON_PATH, BLOCKS_PATH, BalloonRequest, BlocksAnswer, ChangeAnswer, EVENTS_PATH, Fault, GUEST_PATH,
    GUEST_SECONDS, GuestAnswer, GuestRequest, LINK_PATH, LinkRequest, MEMORY_PATH, PAUSE_PATH, RATE_PATH,
    RESUME_PATH, RateRequest, ResizeRequest, STOP_PATH, StopAnswer, VM_PATH,
};
use super::registry::{Entry, RegistryError, RuntimeDir};
use super::report::{BalloonReport, BlockReport, ResizeReport, VmStatus};
use crate::spec::VmName;

/// How long a VM has for an answer that takes no waiting for the guest.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer accepted, in bytes: a report of every block of the largest region, alternating, is shorter.
const ANSWER_LIMIT: usize = 256 << 20;
/// The longest line of a stream, in bytes.
const LINE_LIMIT: usize = 1 << 20;

/// Why a VM did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no such VM, it has exited, or the registry cannot be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The VM ended before it answered.
    #[error("name {name:?}: the VM has exited")]
    Exited {
        /// Its name.
        name: String,
    },
    /// The VM lives, but does not answer.
    #[error("name {name:?}: the VM did not answer within {} s", .timeout.as_secs_f32())]
    TimedOut {
        /// Its name.
        name: String,
        /// How long the client waited.
        timeout: Duration,
    },
    /// The VM refused, and says why.
    #[error("name {name:?}: {message}")]
    Refused {
        /// Its name.
        name: String,
        /// What it says.
        message: String,
    },
    /// The VM's answer is not one that this client knows.
    #[error("name {name:?}: the VM's answer is not understood: {message}")]
    Protocol {
        /// Its name.
        name: String,
        /// What is odd about it.
        message: String,
    },
    /// The host gives no socket or no event loop.
    #[error("name {name:?}: the control socket cannot be used")]
    Socket {
        /// The VM's name.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// A running VM's control socket. Each call is a connection of its own, so that any number of threads may call at the
/// same time, each through a client of its own.
#[derive(Debug)]
pub struct ControlClient {
    name: VmName,
    pid: u32,
    socket: PathBuf,
    runtime: Runtime,
}

impl ControlClient {
    /// The running VM of that name, in the registry that the environment names.
    ///
    /// # Errors
    /// There is none, or it has exited (and what it left is removed).
    pub fn open(name: &VmName) -> Result<Self, ClientError> {
        Self::open_in(&RuntimeDir::from_env(), name)
    }

    /// The running VM of that name in a given registry.
    ///
    /// # Errors
    /// There is none, or it has exited (and what it left is removed).
    pub fn open_in(directory: &RuntimeDir, name: &VmName) -> Result<Self, ClientError> {
        Self::of(directory.find(name)?)
    }

    /// The VM of a registry entry.
    ///
    /// # Errors
    /// The host gives no event loop.
    pub fn of(entry: Entry) -> Result<Self, ClientError> {
        let Entry { name, pid, socket } = entry;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| ClientError::Socket {
            name: name.to_string(),
            source,
        })?;
        Ok(Self {
            name,
            pid,
            socket,
            runtime,
        })
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// The VM's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the VM is doing now.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn status(&self) -> Result<VmStatus, ClientError> {
        self.call(Method::GET, VM_PATH, None::<()>, ANSWER_TIMEOUT)
    }

    /// Which blocks are plugged, of each hot-plug region in the order of their addresses.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn blocks(&self) -> Result<Vec<BlockReport>, ClientError> {
        let answer: BlocksAnswer = self.call(Method::GET, BLOCKS_PATH, None::<()>, ANSWER_TIMEOUT)?;
        Ok(answer.regions)
    }

    /// Asks for a total of `total_bytes`, boot memory and hot-plugged memory together; with `wait`, waits for the guest to
    /// get there, in whole seconds rounded up. A guest that has not got there in time is no error: the report says so.
    ///
    /// # Errors
    /// The VM cannot have that size, or does not answer.
    pub fn resize(&self, total_bytes: u64, wait: Option<Duration>) -> Result<ResizeReport, ClientError> {
        self.resize_in(None, total_bytes, wait)
    }

    /// The same, with the whole change made in one hot-plug region, counted from 0.
    ///
    /// # Errors
    /// The VM cannot have that size, or has no such region, or does not answer.
    pub fn resize_in(
        &self,
        region: Option<usize>,
        total_bytes: u64,
        wait: Option<Duration>,
    ) -> Result<ResizeReport, ClientError> {
        self.ask_size(ResizeRequest {
            total_bytes,
            region,
            wait_seconds: wait.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0)),
            gives_up: false,
        })
    }

    /// Asks the guest for a size, in all that the API can say of it.
    ///
    /// # Errors
    /// As for [`Self::resize_in`].
    pub fn ask_size(&self, request: ResizeRequest) -> Result<ResizeReport, ClientError> {
        let seconds = request.wait_seconds.unwrap_or(0);
        let timeout = ANSWER_TIMEOUT.saturating_add(Duration::from_secs(seconds));
        self.call(Method::PUT, MEMORY_PATH, Some(request), timeout)
    }

    /// Sends a command to the guest's control channel and returns what the guest says.
    ///
    /// # Errors
    /// The guest refuses or does not answer, or the VM does not answer.
    pub fn guest(&self, command: &str) -> Result<String, ClientError> {
        let request = GuestRequest {
            command: command.to_owned(),
        };
        let timeout = ANSWER_TIMEOUT + Duration::from_secs(GUEST_SECONDS);
        let GuestAnswer { answer } = self.call(Method::POST, GUEST_PATH, Some(request), timeout)?;
        Ok(answer)
    }

    /// Gives an order to the balloon and returns how it stands then.
    ///
    /// # Errors
    /// There is no balloon, the guest cannot do it, or the VM does not answer.
    pub fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, ClientError> {
        let timeout = ANSWER_TIMEOUT + Duration::from_secs(GUEST_SECONDS);
        self.call(Method::POST, BALLOON_PATH, Some(order), timeout)
    }

    /// Plugs the wire of a network interface in or out; returns whether that is new.
    ///
    /// # Errors
    /// There is no such interface, or the VM does not answer.
    pub fn set_link(&self, request: LinkRequest) -> Result<bool, ClientError> {
        self.call(Method::POST, LINK_PATH, Some(request), ANSWER_TIMEOUT)
            .map(|ChangeAnswer { changed }| changed)
    }

    /// Changes what a disk may do in a second; returns whether that is new.
    ///
    /// # Errors
    /// There is no such disk, or the VM does not answer.
    pub fn set_rate(&self, request: RateRequest) -> Result<bool, ClientError> {
        self.call(Method::POST, RATE_PATH, Some(request), ANSWER_TIMEOUT)
            .map(|ChangeAnswer { changed }| changed)
    }

    /// Holds the guest; returns whether it ran before.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn pause(&self) -> Result<bool, ClientError> {
        self.call(Method::POST, PAUSE_PATH, None::<()>, ANSWER_TIMEOUT)
            .map(|ChangeAnswer { changed }| changed)
    }

    /// Lets a held guest go on; returns whether it was held.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn resume(&self) -> Result<bool, ClientError> {
        self.call(Method::POST, RESUME_PATH, None::<()>, ANSWER_TIMEOUT)
            .map(|ChangeAnswer { changed }| changed)
    }

    /// Calls `line` with each event after number `after`, one JSON object each, until it breaks off or there are no more:
    /// with `follow` that is when the VM ends.
    ///
    /// # Errors
    /// The VM does not answer, or ended without an end of the stream.
    pub fn events(
        &self,
        after: u64,
        follow: bool,
        line: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let path = format!("{EVENTS_PATH}?after={after}&follow={follow}");
        let request = self.request(Method::GET, &path, None::<()>)?;
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.begin(request)).await;
            let answer = answer.map_err(|_| self.timed_out(ANSWER_TIMEOUT))??;
            if answer.status() != StatusCode::OK {
                let status = answer.status();
                let body = self.collect(answer.into_body()).await?;
                return Err(self.refusal(status, &body));
            }
            self.read_lines(answer.into_body(), line).await
        })
    }

    /// Ends the VM; returns when it has begun to end.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn stop(&self) -> Result<(), ClientError> {
        self.call(Method::POST, STOP_PATH, None::<()>, ANSWER_TIMEOUT)
            .map(|StopAnswer { .. }| ())
    }

    /// One request and its answer, within `timeout`.
    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let request = self.request(method, path, body)?;
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(timeout, self.exchange(request)).await });
        let (status, body) = answer.map_err(|_| self.timed_out(timeout))??;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| self.protocol(&error.to_string()));
        }
        Err(self.refusal(status, &body))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let body = body.map_or(Ok(Vec::new()), |body| serde_json::to_vec(&body));
        let body = body.map_err(|error| self.protocol(&error.to_string()))?;
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.protocol(&error.to_string()))
    }

    /// Connects, sends, and reads the whole answer.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let answer = self.begin(request).await?;
        let status = answer.status();
        Ok((status, self.collect(answer.into_body()).await?))
    }

    /// Connects, sends, and reads the head of the answer.
    async fn begin(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.socket_error(source))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(&error))?;
        // The connection moves bytes while the answer is awaited; its own error is also the answer's.
        tokio::spawn(connection);
        sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        let body = Limited::new(body, ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => self.broken(&error),
            Err(error) => self.protocol(&error.to_string()),
        })?;
        Ok(body.to_bytes())
    }

    /// Cuts a stream into its lines.
    async fn read_lines(
        &self,
        mut body: Incoming,
        mut line: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let mut waiting = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            // Trailers say nothing.
            let Ok(data) = frame.into_data() else { continue };
            waiting.extend_from_slice(&data);
            while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
                let whole: Vec<u8> = waiting.drain(..=end).collect();
                if line(String::from_utf8_lossy(&whole[..end]).as_ref()).is_break() {
                    return Ok(());
                }
            }
            if waiting.len() > LINE_LIMIT {
                return Err(self.protocol(&format!("an event of more than {LINE_LIMIT} bytes")));
            }
        }
        Ok(())
    }

    fn timed_out(&self, timeout: Duration) -> ClientError {
        ClientError::TimedOut {
            name: self.name.to_string(),
            timeout,
        }
    }

    /// What an answer means that is no success.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(Fault { fault_message }) => ClientError::Refused {
                name: self.name.to_string(),
                message: fault_message,
            },
            Err(_) => self.protocol(&status.to_string()),
        }
    }

    /// No connection: nobody listens at the socket any more, or something is wrong with it.
    fn socket_error(&self, source: io::Error) -> ClientError {
        let name = self.name.to_string();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Exited { name },
            _ => ClientError::Socket { name, source },
        }
    }

    /// The connection ended before the answer did: so has the VM, if it did not simply answer nonsense.
    fn broken(&self, error: &hyper::Error) -> ClientError {
        if error.is_parse() || error.is_user() {
            return self.protocol(&error.to_string());
        }
        ClientError::Exited {
            name: self.name.to_string(),
        }
    }

    fn protocol(&self, message: &str) -> ClientError {
        ClientError::Protocol {
            name: self.name.to_string(),
            message: message.to_owned(),
        }
    }
}
