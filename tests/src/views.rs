//! Reads what the built-in guest says about itself: the answers of `ballast guest NAME ...`.

pub mod pagemap;
pub mod physical;

use std::collections::BTreeMap;

/// Named numbers: `meminfo` (KiB) and `vmstat` (counts).
pub type Numbers = BTreeMap<String, u64>;

/// One line of `blocks`: a block of the hot-plug region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Index in the region.
    pub index: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// `unplugged`, `plugging`, `offline`, `online` or `going-offline`.
    pub state: String,
    /// Name of the zone it is in.
    pub zone: String,
    /// Free 4 KiB pages.
    pub free_pages: u64,
    /// Used 4 KiB pages.
    pub used_pages: u64,
}

/// One line of `ps`: a program, running or exited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u64,
    /// Name of the program.
    pub name: String,
    /// `running`, `waiting`, `exited(N)` or `killed`.
    pub state: String,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Verifications that found what was written.
    pub checks_ok: u64,
    /// Verifications that did not.
    pub checks_failed: u64,
    /// Page faults served.
    pub faults: u64,
    /// Number of the CPU it runs on.
    pub cpu: u64,
}

/// One line of `cpus`: a CPU in use, and what it has done since the guest started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub number: u64,
    /// Programs that live on it.
    pub programs: u64,
    /// Times it entered a program.
    pub runs: u64,
    /// Interrupts that came in.
    pub interrupts: u64,
    /// Those of them that other CPUs sent.
    pub calls: u64,
    /// Calls it sent so that other CPUs leave a program whose pages change.
    pub leave_calls: u64,
    /// Calls it sent so that other CPUs forget translations of the guest's manager.
    pub forget_calls: u64,
    /// Milliseconds it slept.
    pub idle_ms: u64,
}

impl Process {
    /// Whether it has neither exited nor been killed.
    pub fn is_alive(&self) -> bool {
        self.state == "running" || self.state == "waiting"
    }
}

/// Parses `meminfo` (`MemTotal:  917504 kB`); the numbers are KiB.
///
/// # Panics
/// When a line has another form.
pub fn meminfo(text: &str) -> Numbers {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        // Huge pages are counted one by one.
        let value = rest.trim();
        let value = value.strip_suffix(" kB").unwrap_or(value).trim().parse().ok()?;
        Some((name.to_owned(), value))
    };
    parse_lines(text, line)
}

/// Parses `vmstat` (`name value`), leaving out the lines whose value is a word.
///
/// # Panics
/// When a line has another form.
pub fn vmstat(text: &str) -> Numbers {
    let pairs = parse_lines::<Vec<_>, _>(text, |line| line.split_once(' '));
    pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// Parses `blocks`, one line a block below a header.
///
/// # Panics
/// When a line has another form.
pub fn blocks(text: &str) -> Vec<Block> {
    parse_lines(below_header(text), |line| {
        let mut words = line.split_whitespace();
        let block = Block {
            index: words.next()?.parse().ok()?,
            gpa: u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?,
            state: words.next()?.to_owned(),
            zone: words.next()?.to_owned(),
            free_pages: words.next()?.parse().ok()?,
            used_pages: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(block)
    })
}

/// Parses `ps`, one line a program below a header.
///
/// # Panics
/// When a line has another form.
pub fn ps(text: &str) -> Vec<Process> {
    parse_lines(below_header(text), |line| {
        let mut words = line.split_whitespace();
        Some(Process {
            pid: words.next()?.parse().ok()?,
            name: words.next()?.to_owned(),
            state: words.next()?.to_owned(),
            rss_kib: words.next()?.parse().ok()?,
            checks_ok: words.next()?.parse().ok()?,
            checks_failed: words.next()?.parse().ok()?,
            faults: words.next()?.parse().ok()?,
            cpu: words.next()?.parse().ok()?,
        })
    })
}

/// Parses `cpus`, one line a CPU below a header.
///
/// # Panics
/// When a line has another form.
pub fn cpus(text: &str) -> Vec<Cpu> {
    parse_lines(below_header(text), |line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
        let mut next = || numbers.next().flatten();
        let cpu = Cpu {
            number: next()?,
            programs: next()?,
            runs: next()?,
            interrupts: next()?,
            calls: next()?,
            leave_calls: next()?,
            forget_calls: next()?,
            idle_ms: next()?,
        };
        numbers.next().is_none().then_some(cpu)
    })
}

fn below_header(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest)
}

fn parse_lines<'a, C: FromIterator<T>, T>(text: &'a str, parse: impl Fn(&'a str) -> Option<T>) -> C {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| parse(line).unwrap_or_else(|| panic!("unexpected line {line:?} in:\n{text}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_views_are_read_in_their_formats() {
        assert_eq!(meminfo("MemTotal:      917504 kB\n")["MemTotal"], 917_504);
        let counts = vmstat("pgfault 12\nresize_stall_reason none\n");
        assert_eq!((counts["pgfault"], counts.len()), (12, 1));
        let read =
            blocks("INDEX GPA STATE ZONE FREE_PAGES USED_PAGES\n3 0x100600000 online Movable 500 12\n");
        assert_eq!(
            (read[0].index, read[0].gpa, read[0].used_pages),
            (3, 0x1_0060_0000, 12)
        );
        let read = ps(
            "PID NAME STATE RSS_KIB CHECKS_OK CHECKS_FAILED FAULTS CPU ARGS\n1 hog running 64 5 0 9 3 hog size=64K\n",
        );
        assert_eq!(
            (
                read[0].name.as_str(),
                read[0].checks_ok,
                read[0].faults,
                read[0].cpu
            ),
            ("hog", 5, 9, 3)
        );
    }

    #[test]
    fn the_cpus_are_read() {
        let read = cpus(
            "CPU PROGRAMS RUNS INTERRUPTS CALLS LEAVE_CALLS FORGET_CALLS IDLE_MS\n0 1 8 7 6 5 4 3\n1 0 0 0 0 0 0 9\n",
        );
        assert_eq!(
            (
                read[0].runs,
                read[0].forget_calls,
                read[1].number,
                read[1].idle_ms
            ),
            (8, 4, 1, 9)
        );
    }

    #[test]
    #[should_panic(expected = "unexpected line")]
    fn a_line_of_another_form_is_not_passed_over() {
        blocks("INDEX GPA STATE ZONE FREE_PAGES USED_PAGES\n3 100600000 online Movable 500 12\n");
    }
}
