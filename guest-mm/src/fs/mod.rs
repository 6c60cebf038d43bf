//! File systems.

pub mod pagefs;
