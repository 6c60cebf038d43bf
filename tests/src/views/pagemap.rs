//! Reads single pages of programs: `ballast guest NAME pagemap PID ADDRESS PAGES`.

use super::{below_header, parse_lines};

/// What a program has at one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: u64,
    /// The frame that is mapped there, if one is.
    pub frame: Option<Frame>,
}

/// A page frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub pfn: u64,
    /// The first frame of the chunk that it is in.
    pub head: u64,
    /// Entries of page tables that map it.
    pub mapcount: u64,
    /// The hot-plug block that it is on.
    pub block: Option<u64>,
    /// What is known of it: `anon`, `locked`, `dirty`, ...
    pub flags: Vec<String>,
}

impl Frame {
    /// Whether all of these are among its flags.
    pub fn has(&self, flags: &[&str]) -> bool {
        flags
            .iter()
            .all(|flag| self.flags.iter().any(|known| known == flag))
    }
}

/// Parses `pagemap`, one line a page below a header.
///
/// # Panics
/// When a line has another form.
pub fn pagemap(text: &str) -> Vec<Place> {
    parse_lines(below_header(text), |line| {
        let (address, rest) = line.split_once(' ')?;
        let address = hexadecimal(address)?;
        let frame = match rest {
            "migrating" | "poisoned" | "swapped" | "file" | "none" => None,
            _ => Some(frame(rest)?),
        };
        Some(Place { address, frame })
    })
}

/// `PFN STATE HEAD COUNT MAPCOUNT NODE BLOCK FLAGS`.
fn frame(line: &str) -> Option<Frame> {
    let (words, flags) = line.split_once('{')?;
    let words: Vec<&str> = words.split_whitespace().collect();
    let &[pfn, _state, head, _count, mapcount, _node, block] = &words[..] else {
        return None;
    };
    let flags = flags
        .strip_suffix('}')?
        .split(", ")
        .filter(|flag| !flag.is_empty());
    Some(Frame {
        pfn: hexadecimal(pfn)?,
        head: hexadecimal(head)?,
        mapcount: mapcount.parse().ok()?,
        block: match block {
            "-" => None,
            block => Some(block.parse().ok()?),
        },
        flags: flags.map(str::to_owned).collect(),
    })
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_with_what_is_known_of_their_frames() {
        let text = "ADDRESS PFN STATE HEAD COUNT MAPCOUNT NODE BLOCK FLAGS\n\
                    0x1000 0x20203 allocated 0x20200 2 1 0 3 {anon, lru, swapcache}\n\
                    0x2000 0x77 allocated 0x77 1 1 0 - {}\n\
                    0x3000 swapped\n";
        let read = pagemap(text);
        let first = read[0].frame.as_ref().unwrap();
        assert_eq!(
            (read[0].address, first.pfn, first.head),
            (0x1000, 0x2_0203, 0x2_0200)
        );
        assert_eq!((first.mapcount, first.block), (1, Some(3)));
        assert!(first.has(&["anon", "swapcache"]) && !first.has(&["anon", "dirty"]));
        let second = read[1].frame.as_ref().unwrap();
        assert_eq!((second.block, second.flags.len()), (None, 0));
        assert_eq!((read[2].address, &read[2].frame), (0x3000, &None));
    }
}
