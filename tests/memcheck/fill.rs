//! Stamps every page of a share of the memory that is available, verifies all stamps, and ends.
//!
//! A stamp is two words at the beginning of a page: a magic one, and the page's number. That costs little on an emulated
//! processor, and `find-fill` can tell a stamped page from any other. Prints `filled B wrong W` (bytes, pages).

use crate::PAGE;

/// First word of a stamped page.
pub(crate) const MAGIC: u64 = 0x4241_4c4c_4153_5421;

const WORDS: usize = PAGE / size_of::<u64>();

/// Fills `percent` of `MemAvailable`.
pub(crate) fn fill(percent: usize) -> Result<(), String> {
    let meminfo =
        std::fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let pages = available_kib(&meminfo).ok_or("no MemAvailable in /proc/meminfo")? * 1024 / PAGE;
    let pages = pages * percent / 100;
    // The kernel's zero pages until a stamp is written.
    let mut words = vec![0_u64; (pages + 1) * WORDS];
    let first = words.as_ptr().align_offset(PAGE);
    let stamped = &mut words[first..first + pages * WORDS];
    for (number, page) in stamped.chunks_exact_mut(WORDS).enumerate() {
        page[0] = MAGIC;
        page[1] = number as u64;
    }
    let wrong = wrong_pages(stamped);
    println!("filled {} wrong {wrong}", pages * PAGE);
    Ok(())
}

/// Pages without the stamp that belongs there.
fn wrong_pages(words: &[u64]) -> usize {
    let pages = words.chunks_exact(WORDS).enumerate();
    pages
        .filter(|(number, page)| page[0] != MAGIC || page[1] != *number as u64)
        .count()
}

fn available_kib(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_went_or_came_from_elsewhere_is_wrong() {
        let mut words = vec![0; 2 * WORDS];
        for number in 0..2 {
            words[number * WORDS] = MAGIC;
            words[number * WORDS + 1] = number as u64;
        }
        assert_eq!(wrong_pages(&words), 0);
        words[WORDS + 1] = 0;
        assert_eq!(wrong_pages(&words), 1);
        words[0] = 0;
        assert_eq!(wrong_pages(&words), 2);
    }

    #[test]
    fn what_is_available_is_read_in_kib() {
        let text = "MemTotal:  10 kB\nMemAvailable:     7 kB\n";
        assert_eq!(available_kib(text), Some(7));
    }
}
