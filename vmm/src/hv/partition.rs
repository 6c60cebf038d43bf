//! One VM: its memory slots, its interrupt controllers, and the lines between it and the event loop.
#![expect(unsafe_code, reason = "KVM takes memory by raw address")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{HvError, Vcpu};
use crate::machine::layout::{IOAPIC_PINS, KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::{GuestRam, MemorySlot};

/// One VM.
#[derive(Debug)]
pub struct Partition {
    vm: VmFd,
    ram: Option<Arc<GuestRam>>,
}

impl Partition {
    /// Gives the VM its interrupt controllers (IOAPIC, local APICs, PICs) and interval timer.
    pub(super) fn new(vm: VmFd) -> Result<Self, HvError> {
        let tss = usize::try_from(KVM_TSS).expect("an address below 4 GiB fits");
        vm.set_tss_address(tss)
            .map_err(HvError::request("place its task state segment"))?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(HvError::request("place its identity map"))?;
        vm.create_irq_chip()
            .map_err(HvError::request("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(pit)
            .map_err(HvError::request("create an interval timer"))?;
        let partition = Self { vm, ram: None };
        partition.route_lines_to_the_ioapic()?;
        Ok(partition)
    }

    /// Shows the guest `ram`, once. The partition, and every vCPU made of it from now on, keeps the memory mapped.
    ///
    /// # Errors
    /// KVM refuses a slot.
    pub fn set_memory(&mut self, ram: &Arc<GuestRam>) -> Result<(), HvError> {
        self.ram = Some(Arc::clone(ram));
        (0..)
            .zip(ram.slots())
            .try_for_each(|(id, slot)| self.set_slot(id, *slot))
    }

    /// Shows the guest of its hot-plug regions nothing but the plugged blocks, for as long as `body` runs: an access
    /// to any other block then leaves the guest as an access without memory, with its exact address.
    ///
    /// No vCPU may run meanwhile, apart from those that `body` runs. Takes about 100 µs for each run of blocks.
    ///
    /// # Errors
    /// KVM refuses a slot; the guest cannot go on then.
    pub fn with_plugged_only<T>(&self, body: impl FnOnce() -> T) -> Result<T, HvError> {
        let Some(ram) = self.ram.as_ref().filter(|ram| !ram.regions().is_empty()) else {
            return Ok(body());
        };
        // The regions' slots are the last ones; the stand-ins take their numbers and those behind them.
        let first = ram.slots().len() - ram.region_slots().len();
        let first = u32::try_from(first).expect("a handful of slots");
        let numbered =
            |slots: &[MemorySlot]| -> Vec<(u32, MemorySlot)> { (first..).zip(slots.to_vec()).collect() };
        let (whole, stand_ins) = (numbered(ram.region_slots()), numbered(&ram.plugged_slots()));
        self.exchange(&whole, &stand_ins)?;
        self.exit_on_emulation_failure(1);
        let result = body();
        self.exit_on_emulation_failure(0);
        self.exchange(&stand_ins, &whole)?;
        Ok(result)
    }

    /// Takes some slots away and sets others.
    fn exchange(&self, old: &[(u32, MemorySlot)], new: &[(u32, MemorySlot)]) -> Result<(), HvError> {
        for (id, slot) in old {
            self.set_slot(*id, MemorySlot { size: 0, ..*slot })?;
        }
        new.iter().try_for_each(|(id, slot)| self.set_slot(*id, *slot))
    }

    /// Whether (1 or 0) an instruction that KVM cannot emulate leaves a guest's user mode with an internal error, as it
    /// always does its kernel's, or is an invalid opcode there. Without the capability (Linux 5.14) it is always the latter.
    fn exit_on_emulation_failure(&self, on: u64) {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [on, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        // Older kernels refuse; what they make of such an access is then their guest's invalid opcode.
        let _ = self.vm.enable_cap(&cap);
    }

    /// Sets slot `id`, or removes it if its size is 0.
    fn set_slot(&self, id: u32, slot: MemorySlot) -> Result<(), HvError> {
        let region = kvm_userspace_memory_region {
            slot: id,
            flags: 0,
            guest_phys_addr: slot.gpa,
            memory_size: slot.size,
            userspace_addr: slot.hva,
        };
        // SAFETY: all slots come from `self.ram`, whose mappings whoever can run the guest (a vCPU, see
        // `create_vcpu`) keeps; they do not overlap, because `GuestRam` refuses ranges that do.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(HvError::request("take guest memory"))
    }

    /// Creates vCPU `id`, which is also its APIC id. All but vCPU 0 wait for INIT and SIPI.
    ///
    /// # Errors
    /// KVM has no room for it.
    pub fn create_vcpu(&self, id: u8) -> Result<Vcpu, HvError> {
        let fd = self
            .vm
            .create_vcpu(id.into())
            .map_err(HvError::request("create a vCPU"))?;
        Ok(Vcpu::new(fd, id, self.ram.clone()))
    }

    /// From now on, a write to `line` raises an edge on interrupt line `gsi`.
    ///
    /// # Errors
    /// The line is taken.
    pub fn connect_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), HvError> {
        self.vm
            .register_irqfd(line, gsi)
            .map_err(HvError::request("connect an interrupt line"))
    }

    /// From now on, a 32-bit write of `value` to guest-physical address `gpa` signals `event` and nothing else.
    ///
    /// # Errors
    /// The address and value are taken.
    pub fn connect_notification(&self, event: &EventFd, gpa: u64, value: u32) -> Result<(), HvError> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(gpa), value)
            .map_err(HvError::request("connect a device notification"))
    }

    /// Sends interrupt line n to pin n of the IOAPIC only. KVM's default sends lines 0 to 15 to the PICs as well,
    /// which no firmware has masked here, and a guest that ignores them would get vectors below 16 from them.
    fn route_lines_to_the_ioapic(&self) -> Result<(), HvError> {
        let entries: Vec<_> = (0..IOAPIC_PINS)
            .map(|pin| kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    irqchip: kvm_irq_routing_irqchip {
                        irqchip: KVM_IRQCHIP_IOAPIC,
                        pin,
                    },
                },
                ..kvm_irq_routing_entry::default()
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).expect("24 entries are within the limit of 4096");
        self.vm
            .set_gsi_routing(&routing)
            .map_err(HvError::request("route interrupt lines"))
    }
}
