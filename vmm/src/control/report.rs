//! What a VM says of itself, as it goes over the control socket. Flat; all sizes are bytes.

use serde::{Deserialize, Serialize};

/// The state of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// The process it lives in.
    pub pid: u32,
    /// What it is doing.
    pub state: VmState,
    /// Seconds since it was built.
    pub uptime_seconds: u64,
    /// Memory it booted with.
    pub boot_memory: u64,
    /// Size of the hot-plug region; 0 without one.
    pub region_size: u64,
    /// Size of a block; 0 without a region.
    pub block_size: u64,
    /// How far into the region the guest may plug at present.
    pub usable_region_size: u64,
    /// How much of the region the guest is asked to take.
    pub requested_size: u64,
    /// How much of it the guest has taken.
    pub plugged_size: u64,
    /// `boot_memory + requested_size`.
    pub total_requested: u64,
    /// `boot_memory + plugged_size`.
    pub total_plugged: u64,
    /// Whether the guest's virtio-mem driver has set DRIVER_OK.
    pub driver_ready: bool,
    /// Accesses to unplugged blocks so far.
    pub violations: u64,
    /// Address of the last of them.
    pub last_violation_gpa: Option<u64>,
    /// What the guest did wrong towards devices, so far.
    pub guest_faults: u64,
    /// PLUG requests answered.
    pub plug_requests: u64,
    /// UNPLUG and UNPLUG_ALL requests answered.
    pub unplug_requests: u64,
    /// NACK answers.
    pub nacks: u64,
    /// BUSY answers.
    pub busy: u64,
    /// ERROR answers.
    pub errors: u64,
    /// Bytes of blocks given back to the host so far.
    pub discarded_bytes: u64,
    /// Guest memory resident on the host.
    pub host_resident_bytes: u64,
    /// Resident memory of the VMM beyond the guest's.
    pub vmm_overhead_bytes: u64,
    /// What the guest said when it panicked.
    pub panic_message: Option<String>,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Built, not yet running.
    #[default]
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are held.
    Paused,
    /// It is ending.
    Exiting,
}
