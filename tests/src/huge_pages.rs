//! Huge pages of 2 MiB for the tests that need them, one test at a time: the pool is the whole machine's.

use std::fs::{self, File};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Free huge pages, until dropped.
#[derive(Debug)]
pub struct HugePages {
    before: u64,
    _lock: File,
}

impl HugePages {
    /// Fills the host's pool so that exactly `pages` are free; whoever else wants some waits.
    ///
    /// # Panics
    /// When the machine does not have them, or this user may not fill the pool: the test cannot run, and says so.
    pub fn reserve(pages: u64) -> Self {
        let path = std::env::temp_dir().join("ballast-huge-pages.lock");
        let lock = File::create(&path).unwrap_or_else(|error| panic!("cannot make {path:?}: {error}"));
        lock.lock()
            .unwrap_or_else(|error| panic!("cannot lock {path:?}: {error}"));
        let before = read("nr_hugepages");
        let wanted = before - read("free_hugepages") + pages;
        let written = write(wanted);
        let huge_pages = Self { before, _lock: lock };
        let got = read("nr_hugepages");
        assert_eq!(
            got, wanted,
            "NOT TESTED: the pool of huge pages cannot be filled ({written:?})"
        );
        huge_pages
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // What cannot be given back now was lent to somebody else.
        let _ = write(self.before);
    }
}

fn read(file: &str) -> u64 {
    let path = format!("{POOL}/{file}");
    let text = fs::read_to_string(&path);
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_else(|| panic!("NOT TESTED: this host has no huge pages ({path})"))
}

fn write(pages: u64) -> std::io::Result<()> {
    fs::write(format!("{POOL}/nr_hugepages"), pages.to_string())
}
