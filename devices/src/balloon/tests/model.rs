//! Random histories against a naive model: a set of page numbers, and what the host must have been asked for.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Inflate(Vec<u32>),
    Deflate(Vec<u32>),
    Report(Vec<(u32, u32)>),
    Unplug(u32),
    Plug(u32),
    Reset,
}

/// Pages in one block of the model; blocks start behind the rings and messages.
const BLOCK: u32 = 32;
const FIRST_BLOCK: u32 = 1;
const NR_BLOCKS: u32 = PAGES / BLOCK - FIRST_BLOCK;

fn pages() -> impl Strategy<Value = Vec<u32>> {
    let runs =
        (BLOCK..PAGES, 1..20u32).prop_map(|(first, count)| (first..(first + count).min(PAGES)).collect());
    let scattered = prop::collection::vec(BLOCK..PAGES + 4, 1..12);
    prop_oneof![3 => runs, 1 => scattered].prop_shuffle()
}

fn step() -> impl Strategy<Value = Step> {
    let block = FIRST_BLOCK..=NR_BLOCKS;
    prop_oneof![
        6 => pages().prop_map(Step::Inflate),
        3 => pages().prop_map(Step::Deflate),
        2 => prop::collection::vec((BLOCK..PAGES, 1..20u32), 1..5).prop_map(Step::Report),
        1 => block.clone().prop_map(Step::Unplug),
        1 => block.prop_map(Step::Plug),
        1 => Just(Step::Reset),
    ]
}

#[derive(Default)]
struct Model {
    balloon: BTreeSet<u32>,
    unplugged: BTreeSet<u32>,
}

impl Model {
    fn has(&self, page: u32) -> bool {
        page < PAGES && !self.unplugged.contains(&(page / BLOCK))
    }

    /// The pages of the host page that `page` is in.
    fn host_page(page: u32) -> Vec<u32> {
        if page < PAGES / 2 {
            vec![page]
        } else {
            (page / 4 * 4..page / 4 * 4 + 4).collect()
        }
    }

    /// What a step makes the host take back.
    fn take(&mut self, step: &Step) -> BTreeSet<u32> {
        let mut discarded = BTreeSet::new();
        match step {
            Step::Inflate(pages) => {
                let pages: Vec<u32> = pages.iter().copied().filter(|&page| self.has(page)).collect();
                self.balloon.extend(&pages);
                for page in pages {
                    let host_page = Model::host_page(page);
                    if host_page.iter().all(|page| self.balloon.contains(page)) {
                        discarded.extend(host_page);
                    }
                }
            }
            Step::Deflate(pages) => pages.iter().for_each(|page| {
                self.balloon.remove(page);
            }),
            Step::Report(ranges) => {
                let whole =
                    |&&(first, count): &&(u32, u32)| (first..first + count).all(|page| self.has(page));
                let free: BTreeSet<u32> = ranges
                    .iter()
                    .filter(whole)
                    .flat_map(|&(first, count)| first..first + count)
                    .collect();
                let complete = |page: &&u32| Model::host_page(**page).iter().all(|page| free.contains(page));
                discarded = free.iter().filter(complete).copied().collect();
            }
            Step::Unplug(block) => {
                self.unplugged.insert(*block);
                self.balloon.retain(|page| page / BLOCK != *block);
            }
            Step::Plug(block) => {
                self.unplugged.remove(block);
            }
            Step::Reset => self.balloon.clear(),
        }
        discarded
    }
}

fn perform(driver: &mut BalloonDriver, step: &Step) {
    match step {
        Step::Inflate(pages) => driver.send_pages(Queue::Inflate, pages),
        Step::Deflate(pages) => driver.send_pages(Queue::Deflate, pages),
        Step::Report(ranges) => {
            let buffers: Vec<_> = ranges
                .iter()
                .map(|&(first, count)| bytes_of(first..first + count))
                .collect();
            driver.send_buffers(Queue::Reporting, &buffers);
        }
        Step::Unplug(block) => {
            let bytes = bytes_of(block * BLOCK..(block + 1) * BLOCK);
            driver.transport.forget_pages(bytes.start, bytes.end);
            driver.mem.refuse(bytes);
        }
        Step::Plug(block) => {
            let bytes = bytes_of(block * BLOCK..(block + 1) * BLOCK);
            driver
                .mem
                .refusals()
                .borrow_mut()
                .retain(|refused| *refused != bytes);
        }
        Step::Reset => {
            let features = driver.balloon().features() | virtio_wire::feature::VERSION_1;
            driver.initialise(features);
        }
    }
}

proptest! {
    #[test]
    fn every_history_is_that_of_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let (mut driver, host) = balloon_driver(0);
        let mut model = Model::default();
        let mut total = 0;
        for step in &steps {
            let expected = model.take(step);
            perform(&mut driver, step);
            let calls = host.take();
            let discarded: Vec<u32> = calls
                .iter()
                .flat_map(|range| range.start / PAGE_SIZE..range.end / PAGE_SIZE)
                .map(|page| u32::try_from(page).unwrap() - FIRST)
                .collect();
            prop_assert_eq!(&discarded, &expected.into_iter().collect::<Vec<_>>(), "{:?}", step);
            // Neighbours in one call, but where the host's pages change their size.
            prop_assert!(calls.windows(2).all(|pair| pair[0].end < pair[1].start || pair[0].end == LARGE
                || pair[0].start >= LARGE));
            total += discarded.len() as u64 * PAGE_SIZE;
            prop_assert_eq!(driver.balloon().pages(), model.balloon.len() as u64);
            prop_assert_eq!(driver.balloon().counters().discarded, total);
        }
    }
}
