//! The bootable guest image: the nucleus (machine/nucleus.s) enters [`manager_main`] at ring 3, and the manager takes
//! it from there. The library of this package has what can be tested without the machine.
#![no_std]
#![no_main]
#![expect(dead_code, reason = "the machine is here before what drives it")]

extern crate alloc;

mod boot;
mod log;
mod machine;
mod panic;

use crate::log::log;

/// Where the nucleus enters the manager, with the physical address of the PVH `hvm_start_info`.
#[expect(unsafe_code, reason = "the nucleus finds it by its name")]
#[unsafe(no_mangle)]
extern "C" fn manager_main(start_info: u64) -> ! {
    // SAFETY: the nucleus calls this function once.
    let machine = unsafe { boot::boot(start_info) };
    log!(Info, "{:?} {:?}", machine.local_apic, machine.io_apics);
    for _ in 0..5 {
        let t = machine.clock.now();
        let v = boot::idle(&machine.local_apic, Some(10_000_000));
        log!(Info, "vector {v} after {} us", (machine.clock.now() - t) / 1000);
    }
    log!(Info, "{:?} {:?}", machine.local_apic, machine.io_apics);
    log!(Info, "heap {:?} acpi {:?}", machine::heap::usage(), machine.acpi);
    log!(
        Info,
        "buddy {:?}",
        machine.memory.free_chunks(guest_mm::ZoneKind::Normal)
    );
    machine::power::off(&machine.acpi)
}
