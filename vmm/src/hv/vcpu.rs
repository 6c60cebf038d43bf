//! One virtual CPU: set up on one thread ([`Vcpu`]), run on another ([`ActiveVcpu`]).
#![expect(unsafe_code, reason = "kvm_run holds a union")]

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::cpuid::CpuTopology;
use super::kick::Kickable;
use super::operand::{Mode, linear_address};
use super::{BootState, HvError};
use crate::memory::GuestRam;

const MSR_IA32_MISC_ENABLE: u32 = 0x1A0;
/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, and everything write-back: what firmware leaves for memory that no MTRR names.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// A virtual CPU that no thread runs yet.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
    /// What the guest runs in: it must not be unmapped before the vCPU is gone.
    ram: Option<Arc<GuestRam>>,
}

/// A virtual CPU on the thread that runs it, where the kick signal can stop it.
#[derive(Debug)]
pub struct ActiveVcpu {
    vcpu: Kickable,
    id: u8,
    _ram: Option<Arc<GuestRam>>,
}

/// Why a vCPU is out of the guest.
#[derive(Debug)]
pub enum VcpuEvent<'a> {
    /// The guest reads from a port; one or more bytes to fill in.
    PortRead(u16, &'a mut [u8]),
    /// The guest writes to a port.
    PortWrite(u16, &'a [u8]),
    /// The guest reads at an address without memory, at most 8 bytes.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes to an address without memory, at most 8 bytes.
    MmioWrite(u64, &'a [u8]),
    /// The guest touched memory that the host has protected, at this guest-physical address, if KVM says which:
    /// Linux up to 6.18 does not for memory that is merely protected (`KVM_EXIT_MEMORY_FAULT` is for private memory).
    MemoryFault(Option<u64>),
    /// A signal, or nothing in particular: run again.
    Interrupted,
    /// A triple fault.
    Shutdown,
    /// KVM could not go on; [`ActiveVcpu::emulation_fault`] says where.
    InternalError,
    /// The host's CPU refused the guest's state; the hardware's reason.
    FailedEntry(u64),
    /// An exit that this VMM never asks for, by name.
    Unexpected(String),
}

/// An instruction that KVM could not execute for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulationFault {
    /// KVM's suberror; 1 is a failed emulation.
    pub suberror: u32,
    /// Where the guest was.
    pub rip: u64,
    /// The bytes there, as far as KVM had them; up to 15.
    pub bytes: Vec<u8>,
}

impl fmt::Display for EmulationFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KVM internal error {} at rip {:#x}", self.suberror, self.rip)?;
        if !self.bytes.is_empty() {
            f.write_str(", instruction bytes")?;
        }
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, id: u8, ram: Option<Arc<GuestRam>>) -> Self {
        Self { fd, id, ram }
    }

    /// Its number, which is also its APIC id.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Says what it can do: all that `supported` lists, as one of `cpus` CPUs.
    ///
    /// # Errors
    /// KVM does not take it.
    pub fn set_features(&self, supported: &CpuId, cpus: u8, tsc_deadline: bool) -> Result<(), HvError> {
        let topology = CpuTopology {
            apic_id: self.id,
            cpus,
            tsc_deadline,
        };
        let cpuid = topology.apply(supported.clone());
        self.fd
            .set_cpuid2(&cpuid)
            .map_err(HvError::request("set a CPU's features"))?;
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs = Msrs::from_entries(&[
            msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
            msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        ]);
        let msrs = msrs.expect("two entries are within the limit of 256");
        // KVM stops at the first register it does not have; both are conveniences for guests that read them.
        self.fd
            .set_msrs(&msrs)
            .map_err(HvError::request("set a CPU's model-specific registers"))?;
        Ok(())
    }

    /// Puts the boot CPU where the payload begins.
    ///
    /// # Errors
    /// KVM does not take it.
    pub fn set_boot_state(&self, state: BootState) -> Result<(), HvError> {
        let sregs = self
            .fd
            .get_sregs()
            .map_err(HvError::request("read a CPU's special registers"))?;
        self.fd
            .set_sregs(&state.sregs(sregs))
            .map_err(HvError::request("set a CPU's special registers"))?;
        self.fd
            .set_regs(&state.regs())
            .map_err(HvError::request("set a CPU's registers"))
    }

    /// Binds the vCPU to the calling thread, to be run there and nowhere else.
    #[must_use]
    pub fn activate(self) -> ActiveVcpu {
        ActiveVcpu {
            vcpu: Kickable::new(self.fd),
            id: self.id,
            _ram: self.ram,
        }
    }
}

impl ActiveVcpu {
    /// Its number, which is also its APIC id.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Forgets earlier kicks. To be called *before* the flags are looked at for which this thread is kicked: a kick
    /// after that is then either seen in the flags or stops the next [`Self::run`] at once.
    pub fn rearm(&mut self) {
        self.vcpu.rearm();
    }

    /// Runs the guest until something is to be done for it.
    ///
    /// # Errors
    /// KVM refuses to run it at all.
    pub fn run(&mut self) -> Result<VcpuEvent<'_>, HvError> {
        let exit = match self.vcpu.fd().run() {
            Ok(exit) => exit,
            // A vCPU that waits for INIT says EAGAIN when it is woken by anything else.
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(VcpuEvent::Interrupted);
            }
            Err(errno) if errno.errno() == libc::EFAULT => return Ok(VcpuEvent::MemoryFault(None)),
            Err(source) => {
                return Err(HvError::Request {
                    what: "run a vCPU",
                    source,
                });
            }
        };
        Ok(match exit {
            VcpuExit::IoIn(port, data) => VcpuEvent::PortRead(port, data),
            VcpuExit::IoOut(port, data) => VcpuEvent::PortWrite(port, data),
            VcpuExit::MmioRead(gpa, data) => VcpuEvent::MmioRead(gpa, data),
            VcpuExit::MmioWrite(gpa, data) => VcpuEvent::MmioWrite(gpa, data),
            VcpuExit::MemoryFault { gpa, .. } => VcpuEvent::MemoryFault(Some(gpa)),
            VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => VcpuEvent::Interrupted,
            VcpuExit::Shutdown => VcpuEvent::Shutdown,
            VcpuExit::InternalError => VcpuEvent::InternalError,
            VcpuExit::FailEntry(reason, _) => VcpuEvent::FailedEntry(reason),
            other => VcpuEvent::Unexpected(format!("{other:?}")),
        })
    }

    /// Tells the guest that it was held for a while, so that its watchdogs do not take the time for a CPU that is stuck
    /// (`PVCLOCK_GUEST_STOPPED`). A guest that does not use KVM's clock has nobody to tell.
    pub fn announce_hold(&mut self) {
        let _ = self.vcpu.fd().kvmclock_ctrl();
    }

    /// Where the guest is, for reports; 0 if KVM will not say.
    #[must_use]
    pub fn rip(&mut self) -> u64 {
        self.vcpu.fd().get_regs().map_or(0, |regs| regs.rip)
    }

    /// The guest-physical address of the memory operand of the instruction in `fault`, if that can be told.
    pub fn operand_gpa(&mut self, fault: &EmulationFault) -> Option<u64> {
        let fd = self.vcpu.fd();
        let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
        let mode = Mode {
            long: sregs.cs.l == 1,
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
        };
        let gva = linear_address(&fault.bytes, &regs, mode)?;
        fd.translate_gva(gva)
            .ok()
            .filter(|to| to.valid != 0)
            .map(|to| to.physical_address)
    }

    /// What [`VcpuEvent::InternalError`] was about.
    pub fn emulation_fault(&mut self) -> EmulationFault {
        let rip = self.rip();
        let run = self.vcpu.fd().get_kvm_run();
        // SAFETY: KVM_EXIT_INTERNAL_ERROR fills `internal`, whose bytes are plain integers whatever they hold.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let data = internal.data.get(..internal.ndata as usize).unwrap_or(&[]);
        EmulationFault {
            suberror: internal.suberror,
            rip,
            bytes: instruction_bytes(data),
        }
    }
}

/// The instruction bytes in the data of an internal error (KVM API, KVM_EXIT_INTERNAL_ERROR, `emulation_failure`):
/// word 0 holds flags, of which bit 0 says that word 1 begins with a length byte and the bytes follow it.
fn instruction_bytes(data: &[u64]) -> Vec<u8> {
    let Some((flags, rest)) = data.split_first() else {
        return Vec::new();
    };
    let raw: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
    match raw.split_first() {
        Some((len, bytes)) if flags & 1 == 1 => bytes.iter().take((*len).min(15).into()).copied().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes_are_read_as_kvm_lays_them_out() {
        let word1 = u64::from_le_bytes([3, 0x0F, 0x01, 0xD0, 0x90, 0x90, 0x90, 0x90]);
        assert_eq!(instruction_bytes(&[1, word1, 0x9090_9090]), [0x0F, 0x01, 0xD0]);
        assert_eq!(instruction_bytes(&[0, word1]), [0u8; 0]);
        assert_eq!(instruction_bytes(&[]), [0u8; 0]);
        assert_eq!(
            instruction_bytes(&[1, u64::from_le_bytes([200; 8]), 0, 0, 0]).len(),
            15
        );
    }

    #[test]
    fn a_fault_is_reported_on_one_line_with_its_bytes() {
        let fault = EmulationFault {
            suberror: 1,
            rip: 0x1000,
            bytes: vec![0xC5, 0xF8],
        };
        assert_eq!(
            fault.to_string(),
            "KVM internal error 1 at rip 0x1000, instruction bytes c5 f8"
        );
    }
}
