//! The bootable guest image: the nucleus (machine/nucleus.s) enters [`manager_main`] at ring 3, and the manager takes
//! it from there. The library of this package has what can be tested without the machine.
#![no_std]
#![no_main]

extern crate alloc;

mod balloon;
mod boot;
mod control;
mod devices;
mod disks;
mod drivers;
mod exercise;
mod fault;
mod files;
mod futex;
#[path = "../../programs/src/intrinsics.rs"]
mod intrinsics;
mod kcompactd;
mod kernel;
mod kswapd;
mod load;
mod log;
mod machine;
mod memory_failure;
mod nodes;
mod oom;
mod panic;
mod process;
mod reclaim;
mod resize;
mod smp;
mod swap;
mod syscall;

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use alloc::string::String;
use alloc::vec::Vec;
use guest_kernel::cmdline::SwapDisk;
use guest_kernel::plant;
use guest_sync::CpuId;

/// Where the nucleus enters the manager, on each CPU; CPU 0 has the physical address of the PVH `hvm_start_info`.
#[expect(unsafe_code, reason = "the nucleus finds it by its name")]
#[unsafe(no_mangle)]
extern "C" fn manager_main(cpu: u64, start_info: u64) -> ! {
    if cpu != 0 {
        smp::arrive();
    }
    // SAFETY: the nucleus calls this function once on the boot CPU.
    let mut machine = unsafe { boot::boot(start_info) };
    let (options, found) = (machine.options.clone(), machine.devices.clone());
    let others = core::mem::take(&mut machine.others);
    let kernel = Kernel::new(machine, others.last().map_or(0, |last| last.id.number()));
    smp::start(kernel, others);
    let executor = kernel.executor();
    devices::start(kernel, &executor, found, &options);
    if options.slab_test {
        match plant::every_kind(kernel.slabs, this_cpu()) {
            Some(leak) => log!(Error, "slab: {leak}"),
            None => log!(Error, "slab_debug=test: no memory"),
        }
    }
    let reserved = kernel
        .mm()
        .set_nr_huge_pages(this_cpu(), options.hugepages.into());
    if reserved < options.hugepages.into() {
        log!(
            Warning,
            "hugepages={}: there is memory for {reserved}",
            options.hugepages
        );
    }
    kernel::spawn(&executor, kernel.reap());
    kernel::spawn(&executor, files::reap_shm(kernel));
    nodes::settle(kernel);
    match options.panic_test {
        Some((test, 0)) => panic::provoke(test),
        Some((test, cpu)) => {
            let cpu = CpuId::new(cpu).unwrap_or(CpuId::ZERO);
            kernel.start_program(cpu, async move { panic::provoke(test) });
        }
        None => {}
    }
    options.loads.iter().for_each(|&load| load::start(kernel, load));
    kernel::spawn(
        &executor,
        begin(
            kernel,
            (options.root, options.rootflags),
            options.swaps,
            options.programs,
        ),
    );
    kernel.run(&executor)
}

/// Takes the swap areas into use and mounts the file system, and then starts the programs.
async fn begin(
    kernel: &'static Kernel,
    (root, rootflags): (Option<String>, String),
    swaps: Vec<SwapDisk>,
    programs: Vec<Vec<String>>,
) {
    swap::start(kernel, swaps).await;
    if let Some(disk) = root {
        files::mount(kernel, &disk, &rootflags).await;
    }
    let has_programs = !programs.is_empty();
    for words in programs {
        process::start(kernel, words).await;
    }
    if has_programs {
        end_after_programs(kernel).await;
    }
}

/// Switches the machine off when all programs have ended.
async fn end_after_programs(kernel: &'static Kernel) {
    loop {
        let seen = kernel.program_ended.count();
        if kernel.programs.lock().iter().all(|program| program.has_ended()) {
            files::sync_all(kernel).await;
            kernel.power_off();
        }
        kernel.program_ended.after(seen).await;
    }
}
