//! The host's side of the balloon: what it can see and what it can ask for.

use virtio_wire::balloon::Queue;

use super::run::PageRun;
use super::{Balloon, BalloonOptions, Conversation, Counters, HintingState, PageBackend, Statistics};
use crate::mmio::{Effects, MmioTransport, QueueSet};

impl<B: PageBackend> Balloon<B> {
    /// Pages of 4096 bytes that are in the balloon: handed in by the driver at hand, and not handed out since.
    pub fn pages(&self) -> u64 {
        self.pages.len()
    }

    /// How many of the pages between two guest-physical addresses are in the balloon.
    pub fn pages_between(&self, gpa: u64, end: u64) -> u64 {
        PageRun::inside(gpa, end).map_or(0, |run| self.pages.count_in(run))
    }

    /// Pages that the host wants in the balloon.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// What the operator lets the guest do.
    pub fn options(&self) -> BalloonOptions {
        self.options
    }

    /// What the guest said of its memory last, if it has since the driver came.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// How hinting stands.
    pub fn hinting(&self) -> HintingState {
        self.hinting.state()
    }

    /// What the driver fills free pages with, if it has said so.
    pub fn poison(&self) -> Option<u32> {
        self.conversation.poison
    }

    /// What went through the device.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What stands behind the pages.
    pub fn backend(&self) -> &B {
        self.discarder.backend()
    }

    /// The queue that the driver at hand uses for free page hints, if hinting was negotiated. A driver may use a hinted
    /// page again as soon as its notification is over: it must not be over before the queue was processed.
    pub fn hinting_queue(&self) -> Option<u16> {
        self.index_of(Queue::FreePage)
    }

    /// Whether a part of a huge page waits for pages that nobody wants.
    pub(super) fn waits_in_vain(&self) -> bool {
        self.discarder.is_waiting() && self.pages.len() >= u64::from(self.target)
    }

    fn index_of(&self, queue: Queue) -> Option<u16> {
        let Conversation {
            features, numbering, ..
        } = self.conversation;
        numbering.index_of(queue, features)
    }
}

impl<B: PageBackend> MmioTransport<Balloon<B>> {
    /// Asks the guest to inflate or deflate until this many pages of 4096 bytes are in the balloon, and notifies its driver,
    /// even when it is the number already asked for: a driver that had given up tries again. The effects may ask for the
    /// inflate queue to be processed, though the driver has sent nothing: pages that waited for neighbours do so no longer
    /// when no more are wanted.
    pub fn set_balloon_target(&mut self, pages: u32) -> Effects {
        let effects = self.configure(|balloon| {
            balloon.target = pages;
            true
        });
        let balloon = self.device();
        let due = balloon
            .index_of(Queue::Inflate)
            .filter(|_| balloon.waits_in_vain());
        Effects {
            notified: effects.notified.and(due.map_or(QueueSet::NONE, QueueSet::one)),
            ..effects
        }
    }

    /// Asks the guest for statistics. They come when the effects are seen to and the driver has answered, which shows in
    /// [`Counters::statistics`]; never, if no driver has negotiated them.
    pub fn request_statistics(&mut self) -> Effects {
        let queue = self.device().index_of(Queue::Stats);
        self.device_mut().conversation.wants_stats = queue.is_some();
        Effects {
            notified: queue.map_or(QueueSet::NONE, QueueSet::one),
            ..Effects::NONE
        }
    }

    /// Asks the guest for hints of free pages, in a new round. Nothing comes of it if the driver has not negotiated them.
    pub fn start_hinting(&mut self) -> Effects {
        self.configure(|balloon| {
            let negotiated = balloon.hinting_queue().is_some();
            if negotiated {
                balloon.hinting.start();
            }
            negotiated
        })
    }

    /// Ends hinting: the driver may use what it has hinted.
    pub fn stop_hinting(&mut self) -> Effects {
        self.configure(|balloon| balloon.hinting.finish())
    }

    /// Memory between two guest-physical addresses was taken away from the guest: what was in the balloon of it no longer
    /// counts. Returns how many pages that were.
    pub fn forget_pages(&mut self, gpa: u64, end: u64) -> u64 {
        PageRun::inside(gpa, end).map_or(0, |run| self.device_mut().pages.remove(run))
    }
}
