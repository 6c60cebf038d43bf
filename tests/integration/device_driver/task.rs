//! Runs the guest's futures: polled when they were woken, with interrupts delivered in between.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use devices::VirtioDevice;

use super::bus::Bus;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A task of the guest.
pub(super) struct Task<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    woken: Arc<Woken>,
}

impl<'a, T> Task<'a, T> {
    pub(super) fn new(future: impl Future<Output = T> + 'a) -> Self {
        Self {
            future: Box::pin(future),
            woken: Arc::new(Woken(AtomicBool::new(true))),
        }
    }

    /// Polls the task if it was woken since it was polled last.
    pub(super) fn poll(&mut self) -> Poll<T> {
        if !self.woken.0.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// Runs `future` to its end, delivering the interrupts of `bus` to `on_interrupt`.
///
/// # Panics
/// If it waits for something that nobody is going to do: a lost interrupt or a lost wake-up.
pub(super) fn run<D: VirtioDevice, T>(
    bus: &Bus<'_, D>,
    on_interrupt: impl Fn(),
    future: impl Future<Output = T>,
) -> T {
    let mut task = Task::new(future);
    loop {
        if let Poll::Ready(value) = task.poll() {
            return value;
        }
        assert!(
            bus.take_interrupt(),
            "the task waits, and there is no interrupt that could wake it"
        );
        on_interrupt();
    }
}
