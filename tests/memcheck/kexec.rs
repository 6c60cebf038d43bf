//! Starts another kernel at once, without firmware and without a reset of the machine: `kexec_file_load(2)`, and `reboot(2)`
//! with `LINUX_REBOOT_CMD_KEXEC`. Devices stay as they are; the memory that was plugged stays plugged.

#![expect(unsafe_code, reason = "neither system call has a safe form")]

use std::ffi::CString;
use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

/// Starts the kernel in the file `kernel` with the initial ramdisk in `initrd` and `cmdline`. Returns only if that fails.
pub(crate) fn kexec(kernel: &str, initrd: &str, cmdline: &str) -> Result<(), String> {
    let open = |path: &str| File::open(path).map_err(|error| format!("{path}: {error}"));
    let (kernel, initrd) = (open(kernel)?, open(initrd)?);
    let cmdline = CString::new(cmdline).map_err(|error| format!("command line: {error}"))?;
    let line = cmdline.as_bytes_with_nul();
    // SAFETY: both descriptors are open files, and the command line is as long as is said, its final 0 included; the kernel
    // only reads it.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            line.len(),
            line.as_ptr(),
            0_u64,
        )
    };
    if loaded != 0 {
        return Err(format!("kexec_file_load: {}", Error::last_os_error()));
    }
    // SAFETY: this takes no memory of ours, and nothing of this process is left if it succeeds.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Err(format!("reboot: {}", Error::last_os_error()))
}
