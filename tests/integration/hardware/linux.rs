//! A stock Debian kernel boots, finds its devices through ACPI, ends in every way a machine can end, and does not complain
//! unheard.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use integration_tests::{Home, LinuxGuest, needs_hardware_kvm};

const SMALL: [&str; 2] = ["--memory", "512M"];

#[test]
fn a_debian_kernel_boots_answers_and_its_power_off_is_exit_status_0() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &SMALL, "");
        assert!(guest.shell("uname -r").starts_with("6.12."));
        guest.case("all of a long line typed on the console arrives", |guest| {
            // Many times the 16 bytes of a 16550's FIFO, below the 4096 of a terminal's line.
            let long: String = (0..3000_u32)
                .map(|i| char::from(b'a' + u8::try_from(i % 23).unwrap()))
                .collect();
            assert_eq!(guest.shell(&format!("echo {long}")).trim(), long);
        });
        guest.case("without nodes Linux sees one", |guest| {
            assert_eq!(guest.shell("cat /sys/devices/system/node/online").trim(), "0");
            let tables = guest.shell("ls /sys/firmware/acpi/tables");
            assert!(tables.contains("APIC"), "{tables}");
            assert!(!tables.contains("SRAT") && !tables.contains("SLIT"), "{tables}");
        });
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
fn sixteen_processors_come_up() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M", "--cpus", "16"], "");
        assert_eq!(guest.shell("grep -c ^processor /proc/cpuinfo").trim(), "16");
        assert_eq!(guest.shell("cat /sys/devices/system/cpu/online").trim(), "0-15");
        let on_each = guest.shell(
            "for cpu in $(seq 0 15); do \
             taskset $(printf %x $((1 << cpu))) sh -c 'cut -d\" \" -f39 /proc/self/stat'; done",
        );
        let ran: Vec<String> = on_each.split_whitespace().map(str::to_owned).collect();
        let all: Vec<String> = (0..16).map(|cpu| cpu.to_string()).collect();
        assert_eq!(ran, all, "where a program ran that was sent to each processor");
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

/// How `body` fails, in words.
fn failure(body: &mut dyn FnMut()) -> String {
    // A backtrace takes an emulated processor a quarter of a minute.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(body));
    set_hook(hook);
    let panic = outcome.expect_err("it was heard by nobody");
    let words = panic.downcast_ref::<String>();
    words.expect("a message with values").clone()
}

/// What every other test with a stock guest relies on.
#[test]
fn a_complaint_in_the_log_fails_a_case_and_what_ends_a_guest_and_the_end_of_a_test() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let mut guest = LinuxGuest::boot(&home, "lin", &SMALL, "");
        // Into the kernel's own log (`/dev/kmsg`), as it says these things itself.
        let say = |guest: &mut LinuxGuest, what: &str| {
            guest.shell(&format!("echo '<4>{what}' >/dev/kmsg"));
        };
        for complaint in [
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/0:1:10]",
            "INFO: task kworker/0:0:7 blocked for more than 120 seconds.",
            "WARNING: CPU: 0 PID: 7 at mm/memory_hotplug.c:1 offline_pages+0x1/0x2",
        ] {
            let said = failure(&mut || guest.case("with a complaint", |guest| say(guest, complaint)));
            assert!(said.contains("complained") && said.contains(complaint), "{said}");
        }
        let silent = failure(&mut || guest.case_with_complaints("silent", &["lockup"], |_| {}));
        assert!(silent.contains("did not say [\"lockup\"]"), "{silent}");
        guest.case_with_complaints("expected", &["lockup"], |guest| say(guest, "BUG: soft lockup"));
        say(&mut guest, "BUG: before the end");
        let said = failure(&mut || guest.last_words("poweroff -f"));
        assert!(said.contains("BUG: before the end"), "{said}");
        guest.last_words("echo '<4>BUG: in the last words' >/dev/kmsg; reboot -f");
        let said = failure(&mut || guest.wait_for_shell());
        assert!(said.contains("BUG: in the last words"), "{said}");
        say(&mut guest, "BUG: at the very end");
        let mut guest = Some(guest);
        let said = failure(&mut || drop(guest.take()));
        assert!(said.contains("BUG: at the very end"), "{said}");
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
        // It is a complaint, which a test that does not expect it would not overlook.
        let mut guest = Some(guest);
        let said = failure(&mut || drop(guest.take()));
        assert!(said.contains("Kernel panic - not syncing"), "{said}");
    });
}
