//! The machine under the manager: the nucleus's calls, I/O ports, the serial line, clocks, interrupt controllers,
//! and physical memory. Almost everything that needs `unsafe`, and nothing that decides.

pub(crate) mod activity;
pub(crate) mod apic;
pub(crate) mod areas;
pub(crate) mod clock;
pub(crate) mod cpu;
pub(crate) mod descriptors;
pub(crate) mod direct_map;
pub(crate) mod dma;
pub(crate) mod frames;
pub(crate) mod heap;
pub(crate) mod high_memory;
pub(crate) mod image;
pub(crate) mod io_apic;
pub(crate) mod nucleus;
pub(crate) mod object_cache;
pub(crate) mod physical;
pub(crate) mod ports;
pub(crate) mod power;
pub(crate) mod quiet;
pub(crate) mod registers;
pub(crate) mod serial;
