//! Reads the texts about physical memory: `zoneinfo`, `buddyinfo`, `pagetypeinfo`, `slabinfo`, `vmallocinfo`.
//!
//! Their formats are those of Linux' files in `/proc`, and these readers take both: a test reads a stock kernel's own
//! files with them. Everything panics on a line of another form, so nothing is passed over.

use super::{Numbers, below_header, parse_lines};

/// Orders of the buddy system: chunks of 1 to 1024 frames.
pub const NR_ORDERS: usize = 11;

/// A zone of a node, as both are called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZoneName {
    /// Number of the node.
    pub node: u32,
    /// `DMA`, `DMA32`, `Normal`, `HighMem` or `Movable`.
    pub zone: String,
}

impl ZoneName {
    /// The zone called `zone` of node `node`.
    pub fn new(node: u32, zone: &str) -> Self {
        Self {
            node,
            zone: zone.to_owned(),
        }
    }

    /// Reads `Node N, zone NAME` and answers what follows.
    fn parse(line: &str) -> Option<(Self, &str)> {
        let (node, rest) = line.strip_prefix("Node")?.split_once(", zone")?;
        let rest = rest.trim_start();
        let end = rest
            .find(|end: char| end.is_whitespace() || end == ',')
            .unwrap_or(rest.len());
        let (zone, rest) = rest.split_at(end);
        let name = Self {
            node: node.trim().parse().ok()?,
            zone: zone.to_owned(),
        };
        (!zone.is_empty()).then_some((name, rest))
    }
}

/// One zone of `zoneinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneInfo {
    /// Which one.
    pub name: ZoneName,
    /// Everything that has a name and a number: `free` (of the line `pages free`), `min`, `low`, `high`, `spanned`,
    /// `present`, `managed`, `nr_free_pages`, …, `start_pfn`. Frames, but for counters of events.
    pub numbers: Numbers,
    /// Frames left alone by requests for each higher zone (`lowmem_reserve`).
    pub protection: Vec<u64>,
    /// The per-CPU lists, by CPU: `count`, `high`, `batch`, ….
    pub pagesets: Vec<Numbers>,
}

impl ZoneInfo {
    /// A number of it.
    ///
    /// # Panics
    /// When it has none of that name.
    pub fn number(&self, name: &str) -> u64 {
        let number = self.numbers.get(name);
        *number.unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }
}

/// Parses `zoneinfo`.
///
/// # Panics
/// When a line has another form, or a zone is there twice.
pub fn zoneinfo(text: &str) -> Vec<ZoneInfo> {
    let mut zones: Vec<ZoneInfo> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let parsed = match ZoneName::parse(line) {
            Some((name, "")) => {
                assert!(
                    zones.iter().all(|zone| zone.name != name),
                    "{name:?} twice in:\n{text}"
                );
                zones.push(ZoneInfo {
                    name,
                    numbers: Numbers::new(),
                    protection: Vec::new(),
                    pagesets: Vec::new(),
                });
                Some(())
            }
            Some(_) => None,
            None => zones.last_mut().and_then(|zone| zone_line(zone, line.trim())),
        };
        assert!(parsed.is_some(), "unexpected line {line:?} in:\n{text}");
    }
    zones
}

/// One line below a zone's heading.
fn zone_line(zone: &mut ZoneInfo, line: &str) -> Option<()> {
    let line = line.strip_prefix("pages ").unwrap_or(line);
    if matches!(line, "per-node stats" | "pagesets") {
        return Some(());
    }
    if let Some(list) = line.strip_prefix("protection:") {
        let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        zone.protection = list
            .split(", ")
            .map(|number| number.parse().ok())
            .collect::<Option<Vec<u64>>>()?;
        return Some(());
    }
    let (name, value) = line.rsplit_once([' ', '\t'])?;
    let value = value.parse().ok()?;
    let name = name.trim().trim_end_matches(':');
    if name == "cpu" {
        (zone.pagesets.len() as u64 == value).then(|| zone.pagesets.push(Numbers::new()))?;
        return Some(());
    }
    // What belongs to a CPU ends with the colon that nothing before the CPUs has.
    let is_of_cpu =
        line.contains(": ") && !matches!(name, "node_unreclaimable" | "start_pfn" | "vm stats threshold");
    let numbers = match zone.pagesets.last_mut() {
        Some(pageset) if is_of_cpu => pageset,
        _ => &mut zone.numbers,
    };
    if name != "vm stats threshold" && numbers.insert(name.to_owned(), value).is_some() {
        return None;
    }
    Some(())
}

/// Parses `buddyinfo`: free chunks of each order, by zone.
///
/// # Panics
/// When a line has another form than `Node 0, zone   Normal  1 2 3 ...` with 11 counts.
pub fn buddyinfo(text: &str) -> Vec<(ZoneName, [u64; NR_ORDERS])> {
    parse_lines(text, |line| {
        let (name, rest) = ZoneName::parse(line)?;
        Some((name, counts(rest)?))
    })
}

/// The frames in free chunks.
pub fn pages_in(chunks: &[u64; NR_ORDERS]) -> u64 {
    chunks
        .iter()
        .enumerate()
        .map(|(order, count)| count << order)
        .sum()
}

/// `pagetypeinfo`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageTypes {
    /// Order of a pageblock.
    pub pageblock_order: u64,
    /// Free chunks of each order, by zone and migrate type.
    pub free: Vec<(ZoneName, String, [u64; NR_ORDERS])>,
    /// Pageblocks by zone and migrate type.
    pub blocks: Vec<(ZoneName, Numbers)>,
}

/// Parses `pagetypeinfo`. Linux writes the whole of it once for each node.
///
/// # Panics
/// When a line has another form.
pub fn pagetypeinfo(text: &str) -> PageTypes {
    let mut parts = text.split("Page block order:");
    assert_eq!(parts.next(), Some(""), "no pageblock order in front:\n{text}");
    let mut parts = parts.map(|part| page_types_part(part, text));
    let mut all = parts.next().unwrap_or_else(|| panic!("nothing in:\n{text}"));
    for part in parts {
        assert_eq!(part.pageblock_order, all.pageblock_order, "{text}");
        all.free.extend(part.free);
        all.blocks.extend(part.blocks);
    }
    all
}

/// What follows `Page block order:`.
fn page_types_part(part: &str, text: &str) -> PageTypes {
    let lines: Vec<&str> = part.lines().filter(|line| !line.trim().is_empty()).collect();
    let number = |line: usize, name: &str| -> u64 {
        let value = lines.get(line).and_then(|line| line.strip_prefix(name));
        let value = value.and_then(|value| value.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no number behind {name:?} in:\n{text}"))
    };
    let pageblock_order = number(0, "");
    assert_eq!(number(1, "Pages per block:"), 1 << pageblock_order, "{text}");
    let heading = "Free pages count per migrate type at order";
    let orders = lines.get(2).and_then(|line| line.strip_prefix(heading));
    assert_eq!(
        orders.and_then(counts),
        Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        "no heading in:\n{text}"
    );
    let second = lines
        .iter()
        .position(|line| line.starts_with("Number of blocks type"));
    let second = second.unwrap_or_else(|| panic!("no second part in:\n{text}"));
    let types: Vec<&str> = lines[second].split_whitespace().skip(4).collect();
    PageTypes {
        pageblock_order,
        free: parse_lines(&lines[3..second].join("\n"), |line| {
            let (name, rest) = ZoneName::parse(line)?;
            let rest = rest.strip_prefix(", type")?.trim_start();
            let (kind, rest) = rest.split_once(' ')?;
            Some((name, kind.to_owned(), counts(rest)?))
        }),
        blocks: parse_lines(&lines[second + 1..].join("\n"), |line| {
            let (name, rest) = ZoneName::parse(line)?;
            let numbers: Vec<u64> = all_numbers(rest)?;
            let named = types
                .iter()
                .map(|name| (*name).to_owned())
                .zip(numbers.iter().copied());
            (numbers.len() == types.len()).then(|| (name, named.collect()))
        }),
    }
}

/// One cache of `slabinfo` (format version 2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlabCache {
    /// Name of the cache.
    pub name: String,
    /// Objects in use.
    pub active_objects: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Bytes of an object.
    pub object_size: u64,
    /// Objects in a slab.
    pub objects_per_slab: u64,
    /// Frames of a slab.
    pub pages_per_slab: u64,
    /// Most objects that a CPU keeps to itself, and how many it gets and gives at once.
    pub limit: u64,
    /// See `limit`.
    pub batch: u64,
    /// Slabs with objects in use.
    pub active_slabs: u64,
    /// Slabs.
    pub slabs: u64,
}

/// Parses `slabinfo`.
///
/// # Panics
/// When the version is another one, or a line has another form.
pub fn slabinfo(text: &str) -> Vec<SlabCache> {
    let rest = text.strip_prefix("slabinfo - version: 2.1\n");
    let rest = rest.unwrap_or_else(|| panic!("another version:\n{text}"));
    assert!(
        rest.starts_with(
            "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables"
        ),
        "another heading:\n{text}"
    );
    parse_lines(below_header(rest), |line| {
        let (name, line) = line.split_once(' ')?;
        let (objects, line) = line.split_once(" : tunables")?;
        let (tunables, slabs) = line.split_once(" : slabdata")?;
        let [
            active_objects,
            total,
            object_size,
            objects_per_slab,
            pages_per_slab,
        ] = exactly(objects)?;
        let [limit, batch, _shared] = exactly(tunables)?;
        let [active_slabs, slabs, _shared] = exactly(slabs)?;
        Some(SlabCache {
            name: name.to_owned(),
            active_objects,
            objects: total,
            object_size,
            objects_per_slab,
            pages_per_slab,
            limit,
            batch,
            active_slabs,
            slabs,
        })
    })
}

/// One line of `vmallocinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmallocArea {
    /// First address and the first behind it. Stock Linux prints numbers that stand for them instead.
    pub range: (u64, u64),
    /// Bytes, with the guard page.
    pub bytes: u64,
    /// Who has it, and what is said of it: `pages=4`, `vmalloc`, `N0=4`.
    pub words: Vec<String>,
}

impl VmallocArea {
    /// The number behind `NAME=`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = |word: &String| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        self.words.iter().find_map(value)
    }
}

/// Parses `vmallocinfo`.
///
/// # Panics
/// When a line has another form than `0x...-0x...   8192 words...`.
pub fn vmallocinfo(text: &str) -> Vec<VmallocArea> {
    parse_lines(text, |line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        Some(VmallocArea {
            range: (address(start)?, address(end)?),
            bytes: words.next()?.parse().ok()?,
            words: words.map(str::to_owned).collect(),
        })
    })
}

fn all_numbers(text: &str) -> Option<Vec<u64>> {
    text.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn exactly<const N: usize>(text: &str) -> Option<[u64; N]> {
    all_numbers(text)?.try_into().ok()
}

fn counts(text: &str) -> Option<[u64; NR_ORDERS]> {
    exactly(text)
}

#[cfg(test)]
mod tests;
