//! What each request to the control socket does. Nothing here may stop the server: the machine is only ever called on
//! threads for blocking work, and long waits are bounded in number and end when their client goes away.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use super::api::{
    BALLOON_PATH, BLOCKS_PATH, BODY_LIMIT, BalloonRequest, BlocksAnswer, ChangeAnswer, EVENTS_PATH, Fault,
    GUEST_PATH, GUEST_SECONDS, GuestAnswer, GuestRequest, LINK_PATH, LinkRequest, MAX_WAIT_SECONDS,
    MEMORY_PATH, PAUSE_PATH, RATE_PATH, RESUME_PATH, RateRequest, ResizeRequest, STOP_PATH, StopAnswer,
    VM_PATH,
};
use super::handle::MachineHandle;
use super::report::{BalloonReport, GuestRefusal, PassReport, ResizeReport, ResizeState, VmStatus};
use super::stream::{self, Wish};
use crate::machine::{IncompleteReason, ResizeOutcome, ResizePlace};
use crate::spec::MAX_STATS_SECONDS;

/// How many requests may wait for the guest at the same time.
pub(super) const MAX_WAITERS: usize = 16;
/// How many may read the stream of events at the same time.
pub(super) const MAX_READERS: usize = 16;
/// How long a waiter may take to notice that its client is gone.
const TURN: Duration = Duration::from_millis(250);
/// How long the guest may take to say why it stalls, and how its blocks left: it may be too busy to say anything.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// What all requests share.
#[derive(Clone)]
struct Shared {
    machine: Arc<dyn MachineHandle>,
    waiters: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

/// Why a request failed, in one line.
#[derive(Debug)]
struct Refusal(String);

type Answer<T> = Result<Json<T>, Refusal>;

/// The control socket's service for one machine.
pub(super) fn router(machine: Arc<dyn MachineHandle>) -> Router {
    Router::new()
        .route(VM_PATH, get(status))
        .route(BLOCKS_PATH, get(blocks))
        .route(MEMORY_PATH, put(resize))
        .route(GUEST_PATH, post(guest))
        .route(BALLOON_PATH, post(balloon))
        .route(EVENTS_PATH, get(events))
        .route(PAUSE_PATH, post(pause))
        .route(RESUME_PATH, post(resume))
        .route(LINK_PATH, post(link))
        .route(RATE_PATH, post(rate))
        .route(STOP_PATH, post(stop))
        .fallback(|uri: Uri| async move { Refusal(format!("{uri}: no such path")) })
        .method_not_allowed_fallback(
            |uri: Uri| async move { Refusal(format!("{uri}: not with this method")) },
        )
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Shared {
            machine,
            waiters: Arc::new(Semaphore::new(MAX_WAITERS)),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
        })
}

async fn status(State(shared): State<Shared>) -> Answer<VmStatus> {
    shared.call(|machine| Ok(machine.status())).await.map(Json)
}

async fn blocks(State(shared): State<Shared>) -> Answer<BlocksAnswer> {
    let regions = shared.call(|machine| Ok(machine.blocks())).await?;
    Ok(Json(BlocksAnswer { regions }))
}

async fn resize(State(shared): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer<ResizeReport> {
    let ResizeRequest {
        total_bytes,
        region,
        wait_seconds,
        gives_up,
    } = parse(body)?;
    if gives_up && wait_seconds.is_none() {
        return Err(Refusal("gives_up: only with wait_seconds".to_owned()));
    }
    let place = region.map_or(ResizePlace::Anywhere, ResizePlace::Region);
    if let Some(seconds) = wait_seconds.filter(|seconds| *seconds > MAX_WAIT_SECONDS) {
        return Err(Refusal(format!(
            "wait_seconds {seconds}: at most {MAX_WAIT_SECONDS}"
        )));
    }
    let asked = Instant::now();
    let before = shared
        .call(move |machine| {
            let before = machine.status().total_plugged;
            machine.resize(total_bytes, place).map_err(Refusal::of)?;
            Ok(before)
        })
        .await?;
    let Some(seconds) = wait_seconds else {
        let status = shared.call(|machine| Ok(machine.status())).await?;
        return Ok(Json(report(
            total_bytes,
            status.guest_bytes,
            ResizeState::Requested,
            asked,
        )));
    };
    let deadline = asked + Duration::from_secs(seconds);
    let wait = move |machine: &dyn MachineHandle, gone: &AtomicBool| {
        let mut report = wait_for_size(machine, total_bytes, asked, deadline, gone)?;
        if gives_up && report.outcome == ResizeState::Incomplete && machine.keep().is_ok() {
            report.outcome = ResizeState::GivenUp;
        }
        // Only of those that this resize took: a balloon may have done the rest.
        if machine.status().total_plugged < before {
            report.passes = passes(machine);
        }
        Ok(report)
    };
    shared.wait(wait).await.map(Json)
}

async fn guest(State(shared): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer<GuestAnswer> {
    let GuestRequest { command } = parse(body)?;
    let timeout = Duration::from_secs(GUEST_SECONDS);
    let ask = move |machine: &dyn MachineHandle, _: &AtomicBool| {
        machine.guest_command(&command, timeout).map_err(Refusal::of)
    };
    shared.wait(ask).await.map(|answer| Json(GuestAnswer { answer }))
}

async fn balloon(State(shared): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer<BalloonReport> {
    let order: BalloonRequest = parse(body)?;
    if let BalloonRequest::StatisticsInterval { seconds } = order
        && seconds > MAX_STATS_SECONDS
    {
        return Err(Refusal(format!("seconds {seconds}: at most {MAX_STATS_SECONDS}")));
    }
    let carry_out =
        move |machine: &dyn MachineHandle, _: &AtomicBool| machine.balloon(order).map_err(Refusal::of);
    shared.wait(carry_out).await.map(Json)
}

async fn stop(State(shared): State<Shared>) -> Answer<StopAnswer> {
    let stop = |machine: &dyn MachineHandle| {
        let pid = machine.status().pid;
        machine.stop();
        Ok(StopAnswer { pid })
    };
    shared.call(stop).await.map(Json)
}

async fn pause(State(shared): State<Shared>) -> Answer<ChangeAnswer> {
    let changed = shared.call(|machine| Ok(machine.pause())).await?;
    Ok(Json(ChangeAnswer { changed }))
}

async fn resume(State(shared): State<Shared>) -> Answer<ChangeAnswer> {
    let changed = shared.call(|machine| Ok(machine.resume())).await?;
    Ok(Json(ChangeAnswer { changed }))
}

async fn link(State(shared): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer<ChangeAnswer> {
    let request: LinkRequest = parse(body)?;
    let set = move |machine: &dyn MachineHandle| machine.set_link(request).map_err(Refusal::of);
    let changed = shared.call(set).await?;
    Ok(Json(ChangeAnswer { changed }))
}

async fn rate(State(shared): State<Shared>, body: Result<Bytes, BytesRejection>) -> Answer<ChangeAnswer> {
    let request: RateRequest = parse(body)?;
    let set = move |machine: &dyn MachineHandle| machine.set_rate(request).map_err(Refusal::of);
    let changed = shared.call(set).await?;
    Ok(Json(ChangeAnswer { changed }))
}

async fn events(State(shared): State<Shared>, uri: Uri) -> Result<Response, Refusal> {
    let wish = Wish::parse(uri.query()).map_err(Refusal)?;
    let permit = Arc::clone(&shared.readers)
        .try_acquire_owned()
        .map_err(|_| Refusal(format!("{MAX_READERS} readers of events are there already")))?;
    let lines = stream::body(shared.machine.events(), wish, permit);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

/// Waits in turns until the guest has the size, the time is up, or the client is gone, and reports.
fn wait_for_size(
    machine: &dyn MachineHandle,
    target: u64,
    asked: Instant,
    deadline: Instant,
    gone: &AtomicBool,
) -> Result<ResizeReport, Refusal> {
    loop {
        let outcome = machine.wait_resize(deadline.min(Instant::now() + TURN));
        let (reached_bytes, now_wanted) = match outcome {
            ResizeOutcome::Done { total_bytes } => (total_bytes, total_bytes),
            ResizeOutcome::Incomplete {
                reached_bytes,
                target_bytes,
                ..
            } => (reached_bytes, target_bytes),
        };
        if now_wanted != target {
            let mut report = report(target, reached_bytes, ResizeState::Superseded, asked);
            report.reason = Some(format!("another resize asked for {now_wanted} bytes meanwhile"));
            return Ok(report);
        }
        let ResizeOutcome::Incomplete {
            reason, guest_reason, ..
        } = outcome
        else {
            return Ok(report(target, reached_bytes, ResizeState::Reached, asked));
        };
        let over = reason == IncompleteReason::Ended || gone.load(Ordering::Relaxed);
        if over || Instant::now() >= deadline {
            let mut report = report(target, reached_bytes, ResizeState::Incomplete, asked);
            report.reason = Some(reason.to_string());
            report.cause = Some(reason.code().to_owned());
            let ask = !over && reason != IncompleteReason::DriverNotReady;
            // Asked once, so that the words and the numbers are of the same page.
            let vmstat = ask.then(|| machine.guest_vmstat(REASON_TIMEOUT)).flatten();
            report.guest_refusal = vmstat.as_deref().and_then(GuestRefusal::of);
            report.guest_reason = vmstat.as_deref().and_then(stall_reason).or(guest_reason);
            return Ok(report);
        }
    }
}

/// What the guest's driver gives as its reason for not going on. `None` from a guest that has no such answer, such as a
/// stock Linux.
fn stall_reason(vmstat: &str) -> Option<String> {
    let reason = vmstat
        .lines()
        .find_map(|line| line.strip_prefix("resize_stall_reason "))?
        .trim();
    (reason != "none").then(|| reason.to_owned())
}

/// In how many passes blocks have left, if the guest says it.
fn passes(machine: &dyn MachineHandle) -> Option<PassReport> {
    PassReport::of(&machine.guest_vmstat(REASON_TIMEOUT)?)
}

/// A report without reasons.
fn report(target_bytes: u64, reached_bytes: u64, outcome: ResizeState, asked: Instant) -> ResizeReport {
    let elapsed = asked.elapsed().as_millis();
    ResizeReport {
        outcome,
        target_bytes,
        reached_bytes,
        elapsed_milliseconds: u64::try_from(elapsed).unwrap_or(u64::MAX),
        cause: None,
        reason: None,
        guest_reason: None,
        guest_refusal: None,
        passes: None,
    }
}

/// A request's body as what it should be.
fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal(format!("the body is longer than {BODY_LIMIT} bytes")),
        _ => Refusal(format!("the body cannot be read: {error}")),
    })?;
    serde_json::from_slice(&body)
        .map_err(|error| Refusal(format!("the body is not what belongs here: {error}")))
}

impl Shared {
    /// Calls the machine where it may block for a moment.
    async fn call<T, F>(&self, call: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&dyn MachineHandle) -> Result<T, Refusal> + Send + 'static,
    {
        let machine = Arc::clone(&self.machine);
        let done = tokio::task::spawn_blocking(move || call(&*machine)).await;
        done.unwrap_or_else(|_| Err(Refusal("the VM is ending".to_owned())))
    }

    /// Calls the machine where it may block for long; the flag rises when the client goes away.
    async fn wait<T, F>(&self, call: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&dyn MachineHandle, &AtomicBool) -> Result<T, Refusal> + Send + 'static,
    {
        /// Dropped with the request, which is when the answer is there or the client is gone.
        struct Gone(Arc<AtomicBool>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let permit = Arc::clone(&self.waiters).try_acquire_owned().map_err(|_| {
            Refusal(format!(
                "{MAX_WAITERS} requests are waiting for the guest already"
            ))
        })?;
        let gone = Gone(Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&gone.0);
        self.call(move |machine| {
            let _permit = permit;
            call(machine, &flag)
        })
        .await
    }
}

impl Refusal {
    fn of(error: impl Display) -> Self {
        Self(error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (
            StatusCode::BAD_REQUEST,
            Json(Fault {
                fault_message: self.0,
            }),
        )
            .into_response()
    }
}
