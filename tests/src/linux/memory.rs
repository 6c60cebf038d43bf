//! What a stock Linux guest does with its memory: `memcheck` in all its modes.

use super::LinuxGuest;
use crate::eventually;
use crate::views;

/// What is in a range of physical memory, in pages of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// All pages.
    pub pages: u64,
    /// Those with a stamp that [`LinuxGuest::fill`] left.
    pub stamped: u64,
    /// Those with anything in them.
    pub nonzero: u64,
}

impl LinuxGuest {
    /// `MemTotal` of the guest in KiB.
    pub fn mem_total_kib(&mut self) -> u64 {
        self.meminfo("MemTotal")
    }

    /// Waits until `MemTotal` of the guest is `kib` KiB. A device is done before the guest's kernel is: blocks go online
    /// after they were plugged.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn mem_total_becomes(&mut self, kib: u64) {
        eventually(&format!("MemTotal of {kib} kB"), || {
            (self.mem_total_kib() == kib).then_some(())
        });
    }

    /// A line of the guest's `/proc/meminfo`, in KiB.
    pub fn meminfo(&mut self, name: &str) -> u64 {
        let text = self.shell(&format!("grep '^{name}:' /proc/meminfo"));
        views::meminfo(&text)[name]
    }

    /// A line of the guest's `/proc/vmstat`.
    ///
    /// # Panics
    /// When there is no such line.
    pub fn vmstat(&mut self, name: &str) -> u64 {
        let text = self.shell(&format!("grep '^{name} ' /proc/vmstat"));
        views::vmstat(&text)[name]
    }

    /// Writes to every page of `percent` of the memory that is available, verifies all, gives it back, and answers
    /// how many bytes that was.
    ///
    /// # Panics
    /// When a page does not hold what was written.
    pub fn fill(&mut self, percent: u64) -> u64 {
        let text = self.shell(&format!("memcheck fill {percent}"));
        let [filled, wrong] = numbers(&text, ["filled", "wrong"]);
        assert_eq!(wrong, 0, "wrong pages: {text}");
        filled
    }

    /// What is in physical memory from `gpa` on, `bytes` bytes of it, all of which must be online.
    pub fn look_at(&mut self, gpa: u64, bytes: u64) -> Found {
        let text = self.shell(&format!("memcheck find-fill {gpa} {bytes}"));
        let [pages, stamped, nonzero] = numbers(&text, ["pages", "stamped", "nonzero"]);
        Found {
            pages,
            stamped,
            nonzero,
        }
    }

    /// Holds `mebibytes` of memory that the kernel cannot move, until [`Self::unpin`].
    ///
    /// # Panics
    /// When it does not get there.
    pub fn pin(&mut self, mebibytes: u64) {
        let descriptors = 64 + 32 * mebibytes;
        self.shell("rm -f /tmp/pin /tmp/pins; mkfifo /tmp/pin");
        self.shell(&format!(
            "(ulimit -n {descriptors}; memcheck pin {mebibytes} /tmp/pins </tmp/pin >/tmp/pin.log 2>&1) & exec 9>/tmp/pin"
        ));
        self.wait_for_pins("pinned", mebibytes << 20);
    }

    /// Reads back what [`Self::pin`] holds, and lets go of it.
    ///
    /// # Panics
    /// When a byte has changed.
    pub fn unpin(&mut self) {
        self.shell("echo >&9; exec 9>&-");
        self.wait_for_pins("wrong", 0);
    }

    fn wait_for_pins(&mut self, word: &str, number: u64) {
        let wanted = format!("{word} {number}");
        eventually(&format!("memcheck pin saying {wanted:?}"), || {
            let text = self.shell("cat /tmp/pins /tmp/pin.log 2>/dev/null; true");
            assert!(!text.contains("memcheck:"), "pinning failed: {text}");
            assert!(
                !text.contains("wrong") || text.trim() == "wrong 0",
                "pinned memory has changed: {text}"
            );
            (text.trim() == wanted).then_some(())
        });
    }

    /// Starts `memcheck run` on `mebibytes` of memory and waits until it has verified all of it once.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn start_memcheck(&mut self, mebibytes: u64) {
        self.start_memchecks(1, mebibytes);
    }

    /// Starts several processes of `memcheck run` on `mebibytes` of memory each, and waits until all have verified theirs
    /// once.
    ///
    /// # Panics
    /// When they do not get there.
    pub fn start_memchecks(&mut self, processes: u64, mebibytes: u64) {
        self.shell(&format!(
            "rm -rf /tmp/checks; mkdir /tmp/checks; for n in $(seq {processes}); do \
             memcheck run {mebibytes} /tmp/checks/$n.rounds >/tmp/checks/$n.log 2>&1 & echo $! >>/tmp/checks/pids; done"
        ));
        self.wait_for_memcheck(1);
    }

    /// Waits until each `memcheck run` has finished `rounds` more rounds, none of which may have found a wrong word.
    ///
    /// # Panics
    /// When a word was wrong, one has died, or the deadline passes.
    pub fn wait_for_memcheck(&mut self, rounds: u64) {
        let begun = self.memcheck_rounds();
        let done = |now: &[u64]| {
            let before = begun.iter().chain(std::iter::repeat(&0));
            !now.is_empty()
                && now
                    .iter()
                    .zip(before)
                    .all(|(now, before)| *now >= before + rounds)
        };
        eventually("memcheck going round", || {
            done(&self.memcheck_rounds()).then_some(())
        });
    }

    /// Ends every `memcheck run`, and waits until their memory is free.
    pub fn stop_memcheck(&mut self) {
        // That is when only an exit status is left of a process: it is without a memory of its own before that, and still
        // busy giving back what that had (kernel/exit.c, `exit_mm`).
        self.shell(
            "for pid in $(cat /tmp/checks/pids); do kill $pid; \
             while grep -qs '^State:[[:space:]]*[^Z[:space:]]' /proc/$pid/status; do usleep 20000; done; done",
        );
    }

    /// The rounds of each process, or nothing as long as one has finished none.
    fn memcheck_rounds(&mut self) -> Vec<u64> {
        let text = self.shell(
            "cd /tmp/checks; n=0; for pid in $(cat pids); do n=$((n + 1)); kill -0 $pid 2>/dev/null || echo dead; \
             cat $n.log 2>/dev/null; cat $n.rounds 2>/dev/null || echo none; done; cd /",
        );
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(!lines.contains(&"dead"), "memcheck has died:\n{text}");
        if lines.contains(&"none") {
            return Vec::new();
        }
        let rounds = lines.iter().map(|line| {
            let [rounds, _, failed] = numbers(line, ["rounds", "checked", "failed"]);
            assert_eq!(failed, 0, "memcheck found wrong words:\n{text}");
            rounds
        });
        rounds.collect()
    }
}

/// The numbers behind `names` in a line such as `filled 4096 wrong 0`.
fn numbers<const N: usize>(text: &str, names: [&str; N]) -> [u64; N] {
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words.len(), 2 * N, "expected {names:?} with numbers: {text}");
    let mut found = [0; N];
    for ((pair, name), number) in words.chunks_exact(2).zip(names).zip(&mut found) {
        let parsed = pair[1].parse();
        assert!(
            pair[0] == name && parsed.is_ok(),
            "expected {name} with a number: {text}"
        );
        *number = parsed.unwrap_or_default();
    }
    found
}
