//! Control of running VMs from outside.

pub mod report;
