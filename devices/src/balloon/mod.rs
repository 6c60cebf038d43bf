//! The traditional memory balloon, "virtio-balloon" (virtio 1.3, section 5.5).
//!
//! The host says how many pages it wants with [`MmioTransport::set_balloon_target`]; the driver hands pages in and out by
//! number, and the device gives what is handed in back to the host, joined into ranges ([`PageBackend`]). How many pages the
//! balloon holds is counted page by page ([`Balloon::pages`]), not believed.
//!
//! Three more ways lead to free memory: the driver *reports* free pages by itself; it *hints* them when the host asks for
//! it ([`MmioTransport::start_hinting`]); and it deflates the balloon by itself rather than run out of memory, where that
//! is offered. [`MmioTransport::request_statistics`] asks the guest for its own account of its memory.

mod backend;
mod discard;
mod hinting;
mod host;
mod pages;
mod run;
mod stats;
#[cfg(test)]
mod tests;

use virtio_wire::balloon::{COMMAND_ID_SIZE, Config, Numbering, PAGE_SIZE, PFN_SIZE, Queue, feature, offset};
use virtio_wire::device_id;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

pub use backend::{Extent, PageBackend};
pub use hinting::HintingState;
pub use stats::Statistics;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
#[cfg(doc)]
use crate::mmio::MmioTransport;
use crate::mmio::QueueSet;
use crate::queue::Buffers;
use discard::{Discarder, Outlook};
use hinting::Hinting;
use pages::PageSet;
use run::{PageRun, join};

/// Inflate, deflate, statistics, free pages, reports. Linux wants at least 32 entries for reports.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Page numbers in one chain, at most: 64 MiB of memory. Linux sends 256, others up to 1024.
pub const MAX_PFNS: u32 = 16_384;

/// What the operator lets the guest do with its balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Offer VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest deflates by itself rather than run out of memory.
    pub deflate_on_oom: bool,
    /// Offer VIRTIO_BALLOON_F_FREE_PAGE_HINT: the guest tells which pages are free when asked.
    pub hinting: bool,
    /// Offer VIRTIO_BALLOON_F_PAGE_REPORTING: the guest reports free pages by itself.
    pub reporting: bool,
}

/// A balloon device.
#[derive(Debug)]
pub struct Balloon<B> {
    options: BalloonOptions,
    discarder: Discarder<B>,
    pages: PageSet,
    /// The driver's fields of the configuration space and the target, as they read.
    target: u32,
    actual: u32,
    written_poison: u32,
    hinting: Hinting,
    conversation: Conversation,
    statistics: Option<Statistics>,
    counters: Counters,
}

/// What belongs to the driver that is using the device, and ends with it.
#[derive(Debug, Default)]
struct Conversation {
    features: u64,
    numbering: Numbering,
    queues: QueueSet,
    /// What the driver fills free pages with, if it has said so. Fixed at DRIVER_OK (section 5.5.6.4.1).
    poison: Option<u32>,
    /// The buffer at the front of the statistics queue has been read and is kept to ask for the next one.
    holds_stats_buffer: bool,
    /// The host has asked for statistics since a buffer was last returned.
    wants_stats: bool,
}

/// What went through the device since it exists. Sizes are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains of the inflate queue.
    pub inflate_requests: u64,
    /// Chains of the deflate queue.
    pub deflate_requests: u64,
    /// Bytes that have gone into the balloon.
    pub inflated: u64,
    /// Bytes that have left it.
    pub deflated: u64,
    /// Of those, the bytes that the guest took although the host did not want the balloon smaller: deflation on
    /// out-of-memory, or a driver that is being removed.
    pub deflated_unasked: u64,
    /// Bytes that the guest reported as free.
    pub reported: u64,
    /// Bytes of reports that were left alone because the guest expects its poison in them.
    pub reported_poisoned: u64,
    /// Bytes hinted in a round of hinting.
    pub hinted: u64,
    /// Bytes hinted outside of one, and ignored.
    pub hinted_stale: u64,
    /// Rounds of hinting that the driver has ended.
    pub hinting_rounds: u64,
    /// Reports of statistics that have come.
    pub statistics: u64,
    /// Bytes given back to the host, by whichever way.
    pub discarded: u64,
    /// Ranges that the host did not take back.
    pub discard_failures: u64,
}

impl<B: PageBackend> Balloon<B> {
    /// A balloon that is empty and wants `target` pages of 4096 bytes.
    pub fn new(options: BalloonOptions, target: u32, backend: B) -> Balloon<B> {
        Balloon {
            options,
            discarder: Discarder::new(backend),
            pages: PageSet::default(),
            target,
            actual: 0,
            written_poison: 0,
            hinting: Hinting::new(),
            conversation: Conversation::default(),
            statistics: None,
            counters: Counters::default(),
        }
    }

    /// The configuration space as the driver sees it now.
    pub fn config(&self) -> Config {
        Config {
            num_pages: self.target,
            actual: self.actual,
            free_page_hint_cmd_id: self.hinting.published(),
            poison_val: self.written_poison,
        }
    }

    /// The queue that has this index for the driver at hand.
    fn role(&self, index: u16) -> Option<Queue> {
        let Conversation {
            features, numbering, ..
        } = self.conversation;
        numbering.queue_at(index, features)
    }

    fn inflate<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        self.counters.inflate_requests += 1;
        let mut pfns = match read_pfns(chain) {
            Ok(pfns) => pfns,
            Err(fault) => return Served::refused(fault),
        };
        let mut owned = Vec::new();
        let mut fault = None;
        for run in join(&mut pfns) {
            owned_runs(chain, run, &mut owned, &mut fault);
        }
        let mut inflated = 0;
        for &run in &owned {
            inflated += self.pages.insert(run);
        }
        self.counters.inflated += inflated * PAGE_SIZE;
        self.forget_lost(chain);
        // A page can wait only if the driver tells before it takes one out and uses it (section 5.5.3).
        let tells_first = self.conversation.features & feature::MUST_TELL_HOST != 0;
        let outlook = if tells_first && self.pages.len() < u64::from(self.target) {
            Outlook::More
        } else {
            Outlook::Nothing
        };
        // Only when all have been counted: a page of the host may be complete only then.
        self.discarder
            .emptied(&owned, &self.pages, outlook, &mut self.counters);
        if outlook == Outlook::Nothing {
            self.discarder.flush(&mut self.counters);
        }
        Served {
            fault,
            ..Served::used(0)
        }
    }

    fn deflate<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        self.counters.deflate_requests += 1;
        let mut pfns = match read_pfns(chain) {
            Ok(pfns) => pfns,
            Err(fault) => return Served::refused(fault),
        };
        self.give_back_waiting(chain);
        let wanted = u64::from(self.target);
        let mut deflated = 0;
        for run in join(&mut pfns) {
            deflated += self.pages.remove(run);
        }
        let missing = wanted.saturating_sub(self.pages.len());
        self.counters.deflated += deflated * PAGE_SIZE;
        self.counters.deflated_unasked += deflated.min(missing) * PAGE_SIZE;
        Served::used(0)
    }

    /// Pages wait for their neighbours only while they are in the balloon and the guest has them.
    fn forget_lost<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) {
        let pages = &self.pages;
        self.discarder
            .keep_waiting_if(|run| pages.contains_all(run) && guest_has(chain, run));
    }

    fn give_back_waiting<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) {
        self.forget_lost(chain);
        self.discarder.flush(&mut self.counters);
    }

    /// Reads a buffer when it comes, and keeps it until the host asks for the next one.
    fn serve_statistics<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        self.give_back_waiting(chain);
        if !self.conversation.holds_stats_buffer {
            match Statistics::read(chain) {
                Ok(statistics) => {
                    self.statistics = Some(statistics);
                    self.counters.statistics += 1;
                    self.conversation.holds_stats_buffer = true;
                }
                // It is no use as a signal either: a driver that waits for it would wait for ever.
                Err(fault) => return Served::refused(fault),
            }
        }
        if !self.conversation.wants_stats {
            return Served::later();
        }
        self.conversation.wants_stats = false;
        self.conversation.holds_stats_buffer = false;
        Served::used(0)
    }

    /// A command id, or free pages of the round at hand; a chain may have both.
    fn serve_free_pages<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        let mut ended = false;
        if chain.readable_len() != 0 {
            let mut id = [0; COMMAND_ID_SIZE];
            if let Err(fault) = chain.read(0, &mut id) {
                return Served::refused(fault);
            }
            ended = self.hinting.receive(u32::from_le_bytes(id));
            self.counters.hinting_rounds += u64::from(ended);
        }
        let in_round = self.hinting.state() == HintingState::Running;
        let (runs, fault) = free_runs(chain);
        let len = runs.iter().map(|run| run.len()).sum::<u64>();
        if in_round {
            self.counters.hinted += len;
            self.discarder.free(&runs, &mut self.counters);
        } else {
            self.counters.hinted_stale += len;
        }
        Served {
            fault,
            driver_notified: ended,
            ..Served::used(0)
        }
    }

    fn serve_report<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if chain.readable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue: chain.queue() });
        }
        let (runs, fault) = free_runs(chain);
        let len = runs.iter().map(|run| run.len()).sum::<u64>();
        self.counters.reported += len;
        // A discarded page reads as zeros, and must not read as anything but the poison (section 5.5.6.5.2).
        if self.conversation.poison.is_some_and(|poison| poison != 0) {
            self.counters.reported_poisoned += len;
        } else {
            self.discarder.free(&runs, &mut self.counters);
        }
        Served {
            fault,
            ..Served::used(0)
        }
    }
}

impl<B: PageBackend> VirtioDevice for Balloon<B> {
    fn device_id(&self) -> u32 {
        device_id::BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let optional = [
            (self.options.deflate_on_oom, feature::DEFLATE_ON_OOM),
            (self.options.hinting, feature::FREE_PAGE_HINT),
            (self.options.reporting, feature::PAGE_REPORTING),
        ];
        let always = feature::MUST_TELL_HOST | feature::STATS_VQ | feature::PAGE_POISON;
        optional
            .into_iter()
            .filter(|(offered, _)| *offered)
            .fold(always, |features, (_, bit)| features | bit)
    }

    /// A balloon works for the plainest of drivers.
    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config().encode(), offset, data);
    }

    /// Takes what is written to the driver's two fields, in any width (section 5.5.4).
    fn write_config(&mut self, at: u64, data: &[u8]) {
        let mut config = self.config().encode();
        let start = usize::try_from(at).unwrap_or(Config::SIZE).min(Config::SIZE);
        for (byte, &new) in config[start..].iter_mut().zip(data) {
            *byte = new;
        }
        let written = Config::decode(&config);
        let touches = |field: usize| start < field + size_of::<u32>() && start + data.len() > field;
        if touches(offset::ACTUAL) {
            self.actual = written.actual;
        }
        if touches(offset::POISON_VAL) {
            self.written_poison = written.poison_val;
        }
    }

    /// The queue of hints, see [`Self::hinting_queue`]; before negotiation, every number that it may get.
    fn waited_queues(&self) -> QueueSet {
        if !self.options.hinting {
            QueueSet::NONE
        } else if self.conversation.features == 0 {
            QueueSet::one(Queue::FreePage as u16).and(QueueSet::one(Queue::Stats as u16))
        } else {
            self.hinting_queue().map_or(QueueSet::NONE, QueueSet::one)
        }
    }

    fn queues_in_use(&mut self, queues: QueueSet) {
        self.conversation.queues = queues;
    }

    fn activate(&mut self, features: u64) {
        let dense: QueueSet = Queue::ALL
            .into_iter()
            .filter_map(|queue| Numbering::Dense.index_of(queue, features))
            .collect();
        self.conversation = Conversation {
            features,
            numbering: if self.conversation.queues == dense {
                Numbering::Dense
            } else {
                Numbering::Fixed
            },
            queues: self.conversation.queues,
            poison: (features & feature::PAGE_POISON != 0).then_some(self.written_poison),
            ..Conversation::default()
        };
    }

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        Ok(match self.role(queue) {
            Some(Queue::Inflate) => self.inflate(chain),
            Some(Queue::Deflate) => self.deflate(chain),
            Some(Queue::Stats) => self.serve_statistics(chain),
            Some(Queue::FreePage) => self.serve_free_pages(chain),
            Some(Queue::Reporting) => self.serve_report(chain),
            // A queue without its feature: nothing is promised for it.
            None => Served::used(0),
        })
    }

    /// What waits for more waits no longer when no more is wanted: the host may have lowered the target.
    fn round_ended<M: GuestMemory>(&mut self, mem: &M) -> Result<(), DeviceError> {
        if self.waits_in_vain() {
            let pages = &self.pages;
            self.discarder.keep_waiting_if(|run| {
                let len = usize::try_from(run.len());
                let has = |len| mem.check_range(GuestAddress(run.gpa()), len, Permissions::Write);
                pages.contains_all(run) && len.is_ok_and(has)
            });
            self.discarder.flush(&mut self.counters);
        }
        Ok(())
    }

    /// The pages are the next driver's: it starts with an empty balloon. The target stays, so that it inflates again.
    fn reset(&mut self) {
        self.pages.clear();
        self.discarder.forget();
        (self.actual, self.written_poison) = (0, 0);
        self.hinting.reset();
        self.conversation = Conversation::default();
        self.statistics = None;
    }
}

/// The page numbers of a chain of the inflate or the deflate queue.
fn read_pfns<M: GuestMemory>(chain: &Buffers<'_, M>) -> Result<Vec<u32>, GuestFault> {
    const LIMIT: u64 = MAX_PFNS as u64 * PFN_SIZE as u64;
    let (queue, len) = (chain.queue(), chain.readable_len());
    if chain.writable_len() != 0 {
        return Err(GuestFault::WrongDirection { queue });
    }
    if len > LIMIT {
        return Err(GuestFault::LongChain {
            queue,
            len,
            limit: LIMIT,
        });
    }
    let mut bytes = vec![0; usize::try_from(len).expect("at most 64 KiB")];
    chain.read(0, &mut bytes)?;
    let pfns = bytes.as_chunks::<PFN_SIZE>().0.iter();
    Ok(pfns.map(|&pfn| u32::from_le_bytes(pfn)).collect())
}

/// Adds the parts of `run` that are memory of the guest's to `owned`, and keeps the first fault.
fn owned_runs<M: GuestMemory>(
    chain: &Buffers<'_, M>,
    run: PageRun,
    owned: &mut Vec<PageRun>,
    fault: &mut Option<GuestFault>,
) {
    if guest_has(chain, run) {
        owned.push(run);
        return;
    }
    // Somewhere in it there is an unplugged block, or no memory at all. There are at most as many pages as were sent.
    for first in run.first..run.end() {
        let page = PageRun { first, count: 1 };
        if guest_has(chain, page) {
            match owned.last_mut() {
                Some(last) if last.end() == first => last.count += 1,
                _ => owned.push(page),
            }
        } else {
            fault.get_or_insert(GuestFault::PageUnreachable {
                queue: chain.queue(),
                gpa: page.gpa(),
            });
        }
    }
}

fn guest_has<M: GuestMemory>(chain: &Buffers<'_, M>, run: PageRun) -> bool {
    usize::try_from(run.len()).is_ok_and(|len| chain.guest_has(GuestAddress(run.gpa()), len))
}

/// The whole pages of a chain's device-writable buffers, in order and joined, and the first thing wrong with them. Pages
/// that touch memory the guest does not have are left out, buffer by buffer.
fn free_runs<M: GuestMemory>(chain: &Buffers<'_, M>) -> (Vec<PageRun>, Option<GuestFault>) {
    let queue = chain.queue();
    let mut fault = None;
    let mut runs: Vec<PageRun> = Vec::new();
    for (gpa, len) in chain.writable_spans() {
        let end = gpa.0.checked_add(len.into());
        let has_it = usize::try_from(len).is_ok_and(|len| chain.guest_has(gpa, len));
        match end {
            Some(end) if has_it => runs.extend(PageRun::inside(gpa.0, end)),
            _ => {
                fault.get_or_insert(GuestFault::BufferUnreachable {
                    queue,
                    gpa: gpa.0,
                    len: len.into(),
                });
            }
        }
    }
    runs.sort_unstable_by_key(|run| run.first);
    runs.dedup_by(|next, last| {
        let joins = next.first <= last.end();
        if joins {
            last.count = last.count.max(next.end() - last.first);
        }
        joins
    });
    (runs, fault)
}
