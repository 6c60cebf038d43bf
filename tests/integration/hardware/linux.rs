//! A stock Debian kernel boots, finds its devices through ACPI, and ends in every way a machine can end.

use integration_tests::{Home, LinuxGuest, needs_hardware_kvm};

const SMALL: [&str; 2] = ["--memory", "512M"];

#[test]
fn a_debian_kernel_boots_and_its_power_off_is_exit_status_0() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &SMALL, "");
        assert!(guest.shell("uname -r").starts_with("6.12."));
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        drop(guest);
        home.assert_nothing_left();
    });
}

#[test]
fn devices_are_found_through_acpi() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M", "--hotplug", "1G"], "");
        let mem = guest.shell("readlink -f /sys/bus/virtio/drivers/virtio_mem/virtio*");
        assert!(
            mem.contains("LNRO0005"),
            "virtio-mem is not below its ACPI device: {mem}"
        );
        let console = guest.shell("readlink -f /sys/bus/virtio/drivers/virtio_console/virtio*");
        assert!(
            console.contains("LNRO0005"),
            "virtio-console is not below its ACPI device: {console}"
        );
        let ports = guest.shell("cat /sys/bus/pnp/devices/*/id /sys/bus/acpi/devices/*/hid");
        for id in ["PNP0501", "QEMU0001"] {
            assert!(
                ports.contains(id),
                "the serial port or the panic device is not in ACPI: {ports}"
            );
        }
    });
}

#[test]
fn the_whole_of_a_long_line_typed_on_the_console_arrives() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &SMALL, "");
        // Many times the 16 bytes of a 16550's FIFO, below the 4096 of a terminal's line.
        let long: String = (0..3000_u32)
            .map(|i| char::from(b'a' + u8::try_from(i % 23).unwrap()))
            .collect();
        assert_eq!(guest.shell(&format!("echo {long}")).trim(), long);
    });
}

#[test]
fn two_processors_come_up() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M", "--cpus", "2"], "");
        assert_eq!(guest.shell("grep -c ^processor /proc/cpuinfo").trim(), "2");
        assert_eq!(guest.shell("cat /sys/devices/system/cpu/online").trim(), "0-1");
        let on_second = guest.shell("taskset 2 sh -c 'cut -d\" \" -f39 /proc/self/stat'");
        assert_eq!(on_second.trim(), "1", "no program runs on the second processor");
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
    });
}

#[test]
fn a_reboot_ends_the_vm_where_that_is_wanted_and_says_so() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let arguments = [&SMALL[..], &["--on-reboot", "exit"]].concat();
        let mut guest = LinuxGuest::boot(&home, "lin", &arguments, "");
        guest.last_words("reboot -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        let messages = guest.vm.messages.text();
        assert!(messages.contains("guest asked for a reboot"), "{messages}");
    });
}

#[test]
fn a_panic_of_the_kernel_is_exit_status_3() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &SMALL, "panic=0");
        guest.last_words("echo c >/proc/sysrq-trigger");
        assert_eq!(guest.vm.wait_for_end(), 3);
        let (messages, serial) = (guest.vm.messages.text(), guest.vm.serial.text());
        assert!(messages.contains("panic"), "{messages}");
        assert!(serial.contains("sysrq triggered crash"), "{serial}");
    });
}
