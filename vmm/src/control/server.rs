//! The thread that answers a VM's control socket, and that turns SIGINT, SIGTERM, SIGQUIT and SIGHUP into an orderly stop.
//!
//! Signals are caught before anything is made that would have to be removed ([`ApiServer::new`]); they are obeyed, and
//! requests answered, once there is a machine ([`ApiServer::serve`]).

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::handle::MachineHandle;
use super::routes;

/// How long requests that are being answered may hold up the end of the VM.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Threads for calls that block: the waiters, and room for short ones beside them.
const BLOCKING_THREADS: usize = routes::MAX_WAITERS + 4;

/// The host gives no thread, event loop, or signal handler.
#[derive(Debug, Error)]
#[error("the control socket's thread cannot start")]
pub struct ServerError(#[from] io::Error);

/// What it takes to answer a control socket, before there is a machine to answer for.
#[derive(Debug)]
pub struct ApiServer {
    runtime: Runtime,
    signals: Vec<(&'static str, Signal)>,
}

/// A control socket that answers. Dropping it leaves the thread running; [`RunningServer::shut_down`] ends it.
#[derive(Debug)]
pub struct RunningServer {
    over: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl ApiServer {
    /// Makes the event loop, and catches SIGINT, SIGTERM, SIGQUIT and SIGHUP from now on.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new() -> Result<Self, ServerError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()?;
        let signals = {
            let _context = runtime.enter();
            let catch = |name, kind| signal(kind).map(|signal| (name, signal));
            vec![
                catch("SIGINT", SignalKind::interrupt())?,
                catch("SIGTERM", SignalKind::terminate())?,
                catch("SIGQUIT", SignalKind::quit())?,
                catch("SIGHUP", SignalKind::hangup())?,
            ]
        };
        Ok(Self { runtime, signals })
    }

    /// Answers requests for a machine, on a thread of its own.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn serve(
        self,
        listener: UnixListener,
        machine: Arc<dyn MachineHandle>,
    ) -> Result<RunningServer, ServerError> {
        listener.set_nonblocking(true)?;
        let (over, is_over) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                let Self { runtime, signals } = self;
                if let Err(error) = runtime.block_on(serve(listener, signals, machine, is_over)) {
                    tracing::error!("the control socket is closed: {error}");
                }
                // A call into the machine that does not come back must not hold up the end.
                runtime.shutdown_background();
            })?;
        Ok(RunningServer { over, thread })
    }
}

impl RunningServer {
    /// Finishes the requests that are being answered, for a moment at most, and ends the thread.
    pub fn shut_down(self) {
        // The thread may have ended by itself; its panic would have ended the process.
        let _ = self.over.send(true);
        let _ = self.thread.join();
    }
}

/// The thread's work: requests and signals until it is over.
async fn serve(
    listener: UnixListener,
    signals: Vec<(&'static str, Signal)>,
    machine: Arc<dyn MachineHandle>,
    is_over: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    for (name, signal) in signals {
        tokio::spawn(stop_on(signal, name, Arc::clone(&machine)));
    }
    let mut drained = is_over.clone();
    let server = axum::serve(listener, routes::router(machine)).with_graceful_shutdown(until(is_over));
    tokio::select! {
        result = server => result,
        () = async { until_changed(&mut drained).await; tokio::time::sleep(DRAIN_TIME).await } => Ok(()),
    }
}

/// Stops the machine at each signal; the first one ends it, so that more of them change nothing.
async fn stop_on(mut signal: Signal, name: &'static str, machine: Arc<dyn MachineHandle>) {
    while signal.recv().await.is_some() {
        tracing::info!("{name}: stopping");
        machine.stop();
    }
}

/// Ends when the server is to end.
async fn until(mut is_over: watch::Receiver<bool>) {
    until_changed(&mut is_over).await;
}

/// The same, on a borrowed receiver. A sender that is gone means that nobody will ever end the server.
async fn until_changed(is_over: &mut watch::Receiver<bool>) {
    if is_over.wait_for(|over| *over).await.is_err() {
        std::future::pending::<()>().await;
    }
}
