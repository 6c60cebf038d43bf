//! Tests that need a KVM like hardware's: directly where the processor has it, in the host box elsewhere.

mod builtin;
mod host;
mod linux;
mod linux_balloon;
mod linux_balloon_stays;
mod linux_balloon_yields;
mod linux_blocks;
mod linux_console;
mod linux_debian;
mod linux_disks;
mod linux_memory;
mod linux_network;
mod linux_nodes;
mod linux_reboot;
mod linux_requests;
mod linux_sockets;
mod linux_unmovable;
