//! What the guest's CPUID says: what KVM supports, with the parts that depend on this VM filled in.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: the local APIC's timer has TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, and its leaves begin at 0x4000_0000.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the logical-processor count of EBX is valid.
const HTT: u32 = 1 << 28;

/// The parts of CPUID that the machine decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuTopology {
    /// APIC id of this CPU.
    pub(super) apic_id: u8,
    /// CPUs of the machine: one socket of so many cores of one thread each.
    pub(super) cpus: u8,
    /// Whether the local APIC has TSC-deadline mode.
    pub(super) tsc_deadline: bool,
}

impl CpuTopology {
    /// `supported` as this CPU presents it.
    pub(super) fn apply(self, mut supported: CpuId) -> CpuId {
        for entry in supported.as_mut_slice() {
            self.fill(entry);
        }
        supported
    }

    fn fill(self, entry: &mut kvm_cpuid_entry2) {
        let id = u32::from(self.apic_id);
        let cpus = u32::from(self.cpus);
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0xFFFF) | (cpus << 16) | (id << 24);
                entry.ecx |= HYPERVISOR;
                set(&mut entry.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut entry.edx, HTT, cpus > 1);
            }
            // Intel: every cache is this core's own, and the package has so many cores.
            0x4 => entry.eax = (entry.eax & 0x3FFF) | ((cpus - 1) << 26),
            // No performance counters are promised.
            0xA => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xB | 0x1F => self.fill_topology(entry),
            // AMD: cores of the package, and the width of a core number in an APIC id.
            0x8000_0008 => entry.ecx = (entry.ecx & !0xF0FF) | (cpus - 1) | (self.core_bits() << 12),
            0x8000_001D => entry.eax &= 0x3FFF,
            0x8000_001E => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }

    /// Extended topology: sub-leaf 0 is the thread level, 1 the core level, and from 2 on there is nothing.
    fn fill_topology(self, entry: &mut kvm_cpuid_entry2) {
        let (shift, count, level) = match entry.index {
            0 => (0, 1, 1),
            1 => (self.core_bits(), u32::from(self.cpus), 2),
            _ => (0, 0, 0),
        };
        entry.eax = shift;
        entry.ebx = count;
        entry.ecx = entry.index & 0xFF | level << 8;
        entry.edx = u32::from(self.apic_id);
    }

    /// Bits that hold a core's number.
    fn core_bits(self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(topology: CpuTopology, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let all = u32::MAX;
        let (eax, ebx, ecx, edx) = (all, all, all, all);
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        };
        topology.apply(CpuId::from_entries(&[entry]).unwrap()).as_slice()[0]
    }

    const THIRD_OF_SIX: CpuTopology = CpuTopology {
        apic_id: 2,
        cpus: 6,
        tsc_deadline: true,
    };

    #[test]
    fn each_cpu_has_its_own_apic_id() {
        assert_eq!(apply(THIRD_OF_SIX, 1, 0).ebx >> 24, 2);
        assert_eq!(apply(THIRD_OF_SIX, 0xB, 0).edx, 2);
        assert_eq!(apply(THIRD_OF_SIX, 0x8000_001E, 0).eax, 2);
    }

    #[test]
    fn the_core_level_covers_all_cpus() {
        let cores = apply(THIRD_OF_SIX, 0xB, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        assert_eq!(apply(THIRD_OF_SIX, 0xB, 2).ebx, 0);
        let amd = apply(THIRD_OF_SIX, 0x8000_0008, 0).ecx;
        assert_eq!((amd & 0xFF, amd >> 12 & 0xF), (5, 3));
    }

    #[test]
    fn the_deadline_timer_is_there_only_if_kvm_has_it() {
        assert_ne!(apply(THIRD_OF_SIX, 1, 0).ecx & TSC_DEADLINE, 0);
        let without = CpuTopology {
            tsc_deadline: false,
            ..THIRD_OF_SIX
        };
        assert_eq!(apply(without, 1, 0).ecx & TSC_DEADLINE, 0);
        assert_ne!(apply(without, 1, 0).ecx & HYPERVISOR, 0);
    }
}
