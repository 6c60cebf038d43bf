#![doc = include_str!("../README.md")]

pub mod boot;
pub mod cli;
pub mod control;
pub mod demo;
pub mod disk;
pub mod hv;
pub mod journal;
pub mod machine;
pub mod memory;
pub mod net;
pub mod spec;
pub mod terminal;
pub mod vsock;
