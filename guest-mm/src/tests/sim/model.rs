//! What a file may contain: for each word the values that a reader may find now, and those that may be on the disk after
//! a loss of power.
//!
//! Mostly that is one value. It is more while a `write` is under way that may or may not have reached the word, and on the disk
//! everything counts that was stored since the last `fsync` began. A page that could not be written twice counts as clean: a reader finds
//! what was stored there as long as the page is in memory, and then what is on the disk.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::program::WORDS;
use crate::PAGE_SIZE;

/// Which word of which page.
pub(super) type Place = (u32, u64);

/// See the module.
#[derive(Default)]
pub(super) struct Model {
    /// Bytes that the file has for sure: what is being cut off, or is being added, does not count.
    pub(super) size: u64,
    words: BTreeMap<Place, Word>,
    is_syncing: bool,
    /// What was cut off is on the disk until the next `fsync`.
    cuts_late: bool,
}

struct Word {
    possible: Vec<u64>,
    /// What a `write` that is under way puts there.
    pending: Option<u64>,
    durable: Vec<u64>,
    /// Values since the `fsync` that is under way began.
    since: Vec<u64>,
    /// Its page could not be written since it was last stored to.
    is_lost: bool,
    /// The same since the `write` that is under way began.
    is_lost_in_write: bool,
    /// What somebody may find on the disk who has begun to look there.
    looked_for: Option<Vec<u64>>,
}

impl Default for Word {
    fn default() -> Self {
        Self {
            possible: vec![0],
            pending: None,
            durable: vec![0],
            since: vec![0],
            is_lost: false,
            is_lost_in_write: false,
            looked_for: None,
        }
    }
}

fn add(values: &mut Vec<u64>, value: u64) {
    if !values.contains(&value) {
        values.push(value);
    }
}

impl Word {
    fn may_become(&mut self, value: u64) {
        add(&mut self.possible, value);
        add(&mut self.durable, value);
        add(&mut self.since, value);
        if let Some(looked_for) = &mut self.looked_for {
            add(looked_for, value);
        }
    }
}

/// The byte of a file at which a word is.
pub(super) fn offset_of((page, word): Place) -> u64 {
    u64::from(page) * PAGE_SIZE + word * 8
}

impl Model {
    /// Of a file whose length on the disk changes only with an `fsync`.
    pub(super) fn of_late_cuts() -> Self {
        Self {
            cuts_late: true,
            ..Self::default()
        }
    }

    /// Pages of which at least a byte is there.
    pub(super) fn nr_pages(&self) -> u32 {
        u32::try_from(self.size.div_ceil(PAGE_SIZE)).unwrap()
    }

    pub(super) fn has(&self, place: Place) -> bool {
        offset_of(place) < self.size
    }

    /// A program's store has just happened, through a shared mapping.
    pub(super) fn stored(&mut self, place: Place, value: u64) {
        let is_there = self.has(place);
        let word = self.words.entry(place).or_default();
        if is_there {
            word.possible = word.pending.into_iter().collect();
            word.is_lost = false;
        }
        word.may_become(value);
    }

    /// Somebody has just read this.
    pub(super) fn found(&mut self, place: Place, value: u64) {
        if !self.has(place) {
            return;
        }
        let word = self.words.entry(place).or_default();
        assert!(
            word.possible.contains(&value),
            "word {place:?} is {value:#x}, and should be {:#x?}",
            word.possible
        );
        if word.pending.is_none() && !word.is_lost {
            word.possible = vec![value];
        }
    }

    pub(super) fn begin_write(&mut self, places: &[(Place, u64)]) {
        for &(place, value) in places {
            let word = self.words.entry(place).or_default();
            word.pending = Some(value);
            word.is_lost_in_write = false;
            word.may_become(value);
        }
    }

    /// A `write` has come as far as `end`.
    pub(super) fn end_write(&mut self, places: &[(Place, u64)], end: u64) {
        for &(place, value) in places {
            let word = self.words.entry(place).or_default();
            word.pending = None;
            if offset_of(place) >= end {
                word.possible.retain(|possible| *possible != value);
                if word.possible.is_empty() {
                    word.possible.push(0);
                }
            } else if word.is_lost_in_write {
                // What was there before may be there again.
            } else if let Some(at) = word.possible.iter().position(|possible| *possible == value) {
                // What was there before is gone; what was stored meanwhile came after it, or not.
                word.possible.drain(..at);
                word.is_lost = false;
            }
        }
        self.size = self.size.max(end);
    }

    /// A page could not be written, and is not tried again.
    pub(super) fn lost(&mut self, page: u32) {
        for (_, word) in self.words.range_mut((page, 0)..=(page, u64::MAX)) {
            (word.is_lost, word.is_lost_in_write) = (true, true);
            for value in word.durable.clone() {
                add(&mut word.possible, value);
                if let Some(looked_for) = &mut word.looked_for {
                    add(looked_for, value);
                }
            }
        }
    }

    /// Somebody begins to read pages past the page cache, while nobody writes to the file or cuts it: he finds what is there now, or what is stored
    /// meanwhile.
    pub(super) fn begin_look(&mut self, pages: core::ops::Range<u32>) {
        for place in pages.flat_map(Self::words_of) {
            let word = self.words.entry(place).or_default();
            word.looked_for = Some(word.possible.clone());
        }
    }

    /// What he has found, of the words that are part of the file.
    pub(super) fn end_look(&mut self, pages: core::ops::Range<u32>, found: &[(Place, u64)]) {
        for (place, value) in found {
            let allowed = self.words.get(place).and_then(|word| word.looked_for.as_ref());
            let allowed = allowed.map_or(&[0][..], Vec::as_slice);
            assert!(
                allowed.contains(value),
                "word {place:?} is {value:#x} on the disk, and should be {allowed:#x?}"
            );
        }
        for place in pages.flat_map(Self::words_of) {
            if let Some(word) = self.words.get_mut(&place) {
                word.looked_for = None;
            }
        }
    }

    /// A `write` was given up, nobody knows where; the file is that long.
    pub(super) fn abandon_write(&mut self, places: &[(Place, u64)], size: u64) {
        for (place, _) in places {
            self.words.entry(*place).or_default().pending = None;
        }
        self.size = size;
    }

    /// The file is being made as long as this: what is beyond cannot be relied on any more.
    pub(super) fn begin_truncate(&mut self, size: u64) {
        self.size = self.size.min(size);
    }

    /// The file is that long; pages beyond have no block any more.
    pub(super) fn end_truncate(&mut self, size: u64) {
        self.size = size;
        let first_gone = u32::try_from(size.div_ceil(PAGE_SIZE)).unwrap();
        let cuts_late = self.cuts_late;
        self.words.retain(|place, _| cuts_late || place.0 < first_gone);
        for (place, word) in &mut self.words {
            if offset_of(*place) >= size {
                word.possible = vec![0];
                word.may_become(0);
            }
        }
    }

    /// False if one is under way already.
    pub(super) fn begin_sync(&mut self) -> bool {
        if self.is_syncing {
            return false;
        }
        self.is_syncing = true;
        for word in self.words.values_mut() {
            word.since.clone_from(&word.possible);
        }
        true
    }

    pub(super) fn end_sync(&mut self, has_succeeded: bool) {
        self.is_syncing = false;
        if has_succeeded {
            for word in self.words.values_mut() {
                word.durable.clone_from(&word.since);
            }
        }
    }

    /// Every word that was ever written to and is part of the file, with what may be on the disk.
    pub(super) fn durable(&self) -> impl Iterator<Item = (Place, &[u64])> {
        let there = self.words.iter().filter(|(place, _)| self.has(**place));
        there.map(|(place, word)| (*place, &word.durable[..]))
    }

    /// All words of a page.
    pub(super) fn words_of(page: u32) -> impl Iterator<Item = Place> {
        (0..WORDS).map(move |word| (page, word))
    }
}
