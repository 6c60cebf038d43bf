//! One binary for every test of the running whole. The harness is in `tests/src`; which module runs where:
//! `hardware` on a KVM like hardware's (directly, or in the host box), `device_driver` on none at all, everything
//! else on this machine's `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "in a test a panic is how failure is told")]

mod backings;
mod bad_input;
mod builtin_balloon;
mod builtin_block_events;
mod builtin_compaction;
mod builtin_control_tree;
mod builtin_direct;
mod builtin_disks;
mod builtin_drivers;
mod builtin_events;
mod builtin_files;
mod builtin_full_disk;
mod builtin_huge_pages;
mod builtin_kept;
mod builtin_kernel_memory;
mod builtin_kills;
mod builtin_kinds;
mod builtin_launder;
mod builtin_mappings;
mod builtin_memory;
mod builtin_memory_failure;
mod builtin_methods;
mod builtin_nodes;
mod builtin_nonlinear;
mod builtin_pace;
mod builtin_panic;
mod builtin_processes;
mod builtin_read_ahead;
mod builtin_reboot;
mod builtin_reclaim;
mod builtin_run;
mod builtin_shared;
mod builtin_slices;
mod builtin_slow_disks;
mod builtin_smp;
mod builtin_stuck;
mod builtin_swap;
mod builtin_views;
mod builtin_written_first;
mod cli;
mod cli_running;
mod demo;
mod device_driver;
mod disk_images;
mod hardware;
mod held;
mod kernel_files;
mod names;
mod other_vmm;
mod physical;
mod resize_errors;
mod violation;
