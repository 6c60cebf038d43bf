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
        Self::try_reserve(pages).unwrap_or_else(|reason| panic!("NOT TESTED: {reason}"))
    }

    /// The same for who can do without.
    ///
    /// # Errors
    /// Why there are none, in words.
    pub fn try_reserve(pages: u64) -> Result<Self, String> {
        let path = std::env::temp_dir().join("ballast-huge-pages.lock");
        let lock = File::create(&path).map_err(|error| format!("cannot make {path:?}: {error}"))?;
        lock.lock()
            .map_err(|error| format!("cannot lock {path:?}: {error}"))?;
        let before = read("nr_hugepages")?;
        let wanted = before - read("free_hugepages")? + pages;
        let written = write(wanted);
        let huge_pages = Self { before, _lock: lock };
        let got = read("nr_hugepages")?;
        if got == wanted {
            return Ok(huge_pages);
        }
        Err(format!(
            "the pool of huge pages has {got} where {wanted} are wanted ({written:?})"
        ))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // What cannot be given back now was lent to somebody else.
        let _ = write(self.before);
    }
}

fn read(file: &str) -> Result<u64, String> {
    let path = format!("{POOL}/{file}");
    let text = fs::read_to_string(&path);
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| format!("this host has no huge pages ({path})"))
}

fn write(pages: u64) -> std::io::Result<()> {
    fs::write(format!("{POOL}/nr_hugepages"), pages.to_string())
}
