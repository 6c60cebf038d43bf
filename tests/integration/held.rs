//! Programs of the built-in guest that hold pages of one kind (`kind`), and which pages those are.

use std::collections::BTreeMap;

use integration_tests::views::pagemap::{Frame, pagemap};
use integration_tests::{Running, eventually};

/// A kind of pages as it shows in the guest.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) pages: u64,
    /// What is known of such a page, and what must not be.
    pub(crate) flags: &'static [&'static str],
    pub(crate) without: &'static [&'static str],
    pub(crate) mapcount: u64,
    pub(crate) is_huge: bool,
    /// The counter that must move when such pages do.
    pub(crate) counter: &'static str,
}

/// Anonymous small pages, which all others differ from in something.
pub(crate) const KIND: Kind = Kind {
    name: "",
    pages: 512,
    flags: &["anon"],
    without: &["swapcache", "mlocked"],
    mapcount: 1,
    is_huge: false,
    counter: "pgmigrate_success",
};

impl Kind {
    pub(crate) fn program(&self, from: &str) -> String {
        format!(
            "kind of={} pages={} from={from} seed={}",
            self.name,
            self.pages,
            self.name.len()
        )
    }

    pub(crate) fn is_one(&self, frame: &Frame) -> bool {
        frame.has(self.flags)
            && !self.without.iter().any(|flag| frame.has(&[flag]))
            && frame.mapcount == self.mapcount
    }
}

/// A program that holds pages of one kind.
pub(crate) struct Held<'a> {
    vm: &'a Running,
    pub(crate) kind: &'a Kind,
    pub(crate) pid: u64,
    address: String,
}

impl<'a> Held<'a> {
    /// Waits until the program has them: `kind[PID]: holds PAGES pages of KIND at ADDRESS`.
    pub(crate) fn by(vm: &'a Running, kind: &'a Kind) -> Self {
        let phrase = format!("holds {} pages of {} at ", kind.pages, kind.name);
        let (pid, address) = eventually(&phrase, || {
            let console = vm.serial.text();
            // Of a line that is just being written the end is missing.
            let mut lines = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let line = lines.find(|line| line.contains(&phrase))?;
            let (before, address) = line.split_once(&phrase)?;
            let pid = before.rsplit_once("kind[")?.1.split_once(']')?.0;
            Some((pid.parse().ok()?, address.trim().to_owned()))
        });
        Self {
            vm,
            kind,
            pid,
            address,
        }
    }

    pub(crate) fn checks(&self) -> u64 {
        let programs = self.vm.programs();
        let found = programs.iter().find(|program| program.pid == self.pid);
        let program = found.unwrap_or_else(|| panic!("no {}: {programs:?}", self.kind.name));
        assert!(program.is_alive() && program.checks_failed == 0, "{program:?}");
        program.checks_ok
    }

    pub(crate) fn wait_for_checks(&self) {
        let before = self.checks();
        eventually(self.kind.name, || {
            (self.checks() >= before + 2 * self.kind.pages).then_some(())
        });
    }

    /// The frames that it has now.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        let (pid, pages) = (self.pid.to_string(), self.kind.pages.to_string());
        let listed = self.vm.order("guest", &["pagemap", &pid, &self.address, &pages]);
        pagemap(&listed.success())
            .into_iter()
            .filter_map(|place| place.frame)
            .collect()
    }

    /// The blocks that it has pages of its kind on, and how many pages those are.
    pub(crate) fn blocks(&self) -> BTreeMap<u64, u64> {
        let mut blocks = BTreeMap::new();
        for frame in self.frames().iter().filter(|frame| self.kind.is_one(frame)) {
            if let Some(block) = frame.block {
                *blocks.entry(block).or_default() += 1;
            }
        }
        blocks
    }

    /// Waits until it has so many pages of its kind on blocks.
    pub(crate) fn blocks_with(&self, least: u64) -> BTreeMap<u64, u64> {
        let what = format!("{least} pages of the kind {} on blocks", self.kind.name);
        eventually(&what, || {
            let blocks = self.blocks();
            (blocks.values().sum::<u64>() >= least).then_some(blocks)
        })
    }
}
