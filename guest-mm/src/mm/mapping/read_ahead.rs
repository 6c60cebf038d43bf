//! How far ahead of its reader a file is read (Linux 2.6.23, `mm/readahead.c`, on-demand read-ahead).

/// Pages that are read at first, once reading seems to be sequential.
const FIRST_WINDOW: u32 = 4;
/// Most pages: 512 KiB. (Linux' default is 128 KiB. Where ring 0 is emulated an interrupt costs as much as copying a hundred pages.)
const LARGEST_WINDOW: u32 = 128;

/// Where the reading of an open file has got to. One for each time that it was opened.
///
/// A reader that goes from page to page is read ahead of in windows, each twice as large as the one before; the next one is asked
/// for when the first page of the last is reached, so that the disk is busy while the reader is. Any other read is of
/// its own page alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadAhead {
    /// The page after the one that was read last.
    next: u32,
    window: u32,
    /// The first page that was not asked for.
    end: u32,
    /// Reading this page asks for the next window.
    trigger: Option<u32>,
}

impl ReadAhead {
    /// A page is going to be read, which is in memory or is not. What to ask for: a first page, and how many.
    pub(crate) fn read(&mut self, index: u32, is_there: bool) -> Option<(u32, u32)> {
        let is_sequential = index == self.next || index + 1 == self.next;
        self.next = index.saturating_add(1);
        if is_there && self.trigger == Some(index) {
            let first = self.end;
            self.widen(first);
            self.trigger = Some(first);
            return Some((first, self.window));
        }
        if is_there {
            return None;
        }
        if !is_sequential {
            *self = Self {
                next: self.next,
                ..Self::default()
            };
            return Some((index, 1));
        }
        self.widen(index);
        self.trigger = Some(index.saturating_add(self.window / 2));
        Some((index, self.window))
    }

    fn widen(&mut self, first: u32) {
        self.window = (self.window * 2).clamp(FIRST_WINDOW, LARGEST_WINDOW);
        self.end = first.saturating_add(self.window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    /// Reads pages; the requests that were made, and how often a page was not there.
    fn read(pages: impl IntoIterator<Item = u32>) -> (Vec<(u32, u32)>, u32) {
        let (mut state, mut there) = (ReadAhead::default(), BTreeSet::new());
        let (mut requests, mut misses) = (Vec::new(), 0);
        for page in pages {
            misses += u32::from(!there.contains(&page));
            if let Some((first, nr)) = state.read(page, there.contains(&page)) {
                there.extend(first..first + nr);
                requests.push((first, nr));
            }
        }
        (requests, misses)
    }

    #[test]
    fn a_reader_who_goes_on_waits_once_and_is_then_read_ahead_of_in_growing_windows() {
        let (requests, misses) = read(0..200);
        assert_eq!(misses, 1);
        assert_eq!(requests[..5], [(0, 4), (4, 8), (12, 16), (28, 32), (60, 64)]);
        assert!(requests.windows(2).all(|two| two[0].0 + two[0].1 == two[1].0));
    }

    #[test]
    fn one_who_jumps_about_reads_what_he_wants_and_no_more() {
        let (requests, _) = read((0..50).map(|n| 1000 + n * 7919 % 4096));
        assert!(requests.iter().all(|(_, nr)| *nr == 1));
    }

    #[test]
    fn the_second_half_of_a_page_is_no_jump() {
        let (requests, misses) = read((0..100).map(|half| half / 2));
        assert_eq!((misses, requests[0]), (1, (0, 4)));
    }
}
