//! Tests over several layers: each against a plain model, with `validate()` after every step.

mod compaction;
mod failures;
mod file_maps;
mod file_reclaim;
mod files;
mod fork;
mod fork_steps;
mod hugetlb;
pub(crate) mod inject;
pub(crate) mod kernel_cpus;
pub(crate) mod kernel_frames;
mod launder;
pub(crate) mod machine;
mod many_cpus;
mod many_threads;
mod mapping_threads;
mod migration;
mod mm_threads;
mod nodes;
mod paging;
pub(crate) mod phys_model;
mod reclaim;
mod sim;
mod swap;
pub(crate) mod test_fs;
mod vmemmap;
mod world;
