//! The traditional memory balloon device (virtio 1.3, section 5.5).
//!
//! The device says how large it wants the balloon ([`Config::num_pages`]); the driver takes pages from its allocator and
//! sends their numbers on the inflate queue, or sends numbers on the deflate queue and uses the pages again. Three
//! optional queues carry statistics ([`Stat`]), hints and reports of free memory.

mod config;
mod queue;
mod stat;

pub use config::{Config, offset};
pub use queue::{Numbering, Queue};
pub use stat::{Stat, StatTag};

/// Size of a page of the balloon in bytes, whatever the guest's own page size is (section 5.5.6).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// A page number is the page's guest-physical address shifted right by this.
pub const PAGE_SHIFT: u32 = 12;

/// Size on the wire of a page number, an le32, in a buffer of the inflate or the deflate queue.
pub const PFN_SIZE: usize = 4;

/// Size on the wire of a command id, an le32, in a buffer of the free page queue.
pub const COMMAND_ID_SIZE: usize = 4;

/// Values of `free_page_hint_cmd_id` that are no command id (section 5.5.6.3).
pub mod command {
    /// The driver stops hinting, and keeps what it has hinted. The driver sends it too, when it has no more to hint.
    pub const STOP: u32 = 0;
    /// The driver stops hinting, and may use what it has hinted.
    pub const DONE: u32 = 1;
    /// The least value that is a command id.
    pub const FIRST: u32 = 2;
}

/// Feature bits of the balloon device, as masks of the 64-bit feature word (section 5.5.3).
pub mod feature {
    /// The device is told before pages leave the balloon and are used again (bit 0).
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// There is a queue for statistics (bit 1).
    pub const STATS_VQ: u64 = 1 << 1;
    /// The guest deflates the balloon by itself rather than run out of memory (bit 2).
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// There is a queue for free page hints, and `free_page_hint_cmd_id` is valid (bit 3).
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// `poison_val` is valid: what the guest fills free pages with (bit 4).
    pub const PAGE_POISON: u64 = 1 << 4;
    /// There is a queue for reports of free pages (bit 5).
    pub const PAGE_REPORTING: u64 = 1 << 5;
}
