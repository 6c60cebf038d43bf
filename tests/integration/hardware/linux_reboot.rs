//! A stock Debian kernel reboots with memory plugged, within its VM, or starts another by kexec: it gets what is requested then, not what it had, and
//! nothing of what was written before is left in any of it.

use std::fs;

use integration_tests::{
    Home, LinuxGuest, LinuxImage, Parts, Release, needs_hardware_kvm, needs_hardware_kvm_and,
};

const MIB: u64 = 1 << 20;

const BOOT: u64 = 448 * MIB;
const REGION: u64 = 512 * MIB;

/// Where the region begins with less than 3 GiB of boot memory.
const REGION_GPA: u64 = 4 << 30;
/// Boot memory, some of which the kernel and its ramdisk have left free.
const BOOT_GPA: u64 = 192 * MIB;
/// How much of it is looked through for what was left there.
const LOOK: u64 = 64 * MIB;
/// What the shell and the program that looks may have used of new memory.
const USED: u64 = 8 * MIB;

const CMDLINE: &str = "memhp_default_state=online_movable hold=virtio_mem";

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_mem";

#[test]
fn a_rebooted_guest_gets_what_is_requested_and_all_of_it_empty_on_6_12() {
    needs_hardware_kvm(|| reboots(Release::V6_12));
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn a_rebooted_guest_gets_what_is_requested_and_all_of_it_empty_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || reboots(Release::V6_1));
}

fn reboots(release: Release) {
    let home = Home::new();
    let [kernel, initrd] = disks(release, &home);
    let arguments = [
        "--memory",
        "448M",
        "--hotplug",
        "512M,requested=128M",
        "--disk",
        &kernel,
        "--disk",
        &initrd,
    ];
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &arguments, CMDLINE);
    guest.case("the first boot has what the command line says", |guest| {
        given(guest, 128 * MIB);
    });
    guest.case("more is asked for, and all of it is written to", |guest| {
        guest.vm.resize_to(BOOT + REGION);
        guest.fill(95);
        for (gpa, percent) in [(REGION_GPA, 90), (BOOT_GPA, 10)] {
            let found = guest.look_at(gpa, LOOK);
            assert!(
                found.stamped * 100 >= found.pages * percent,
                "few stamps at {gpa:#x}: {found:?}"
            );
        }
    });
    // Without a driver the guest keeps what it has, whatever is requested.
    let discarded = guest.case("less is requested than the guest has", |guest| {
        guest.shell(&format!("cd {DRIVER} && echo virtio* >unbind; cd /"));
        let report = guest.vm.try_resize(BOOT + 256 * MIB, 1);
        assert_eq!(report.number("reached_bytes"), BOOT + REGION, "{report:?}");
        guest.vm.stats().number("discarded_bytes")
    });
    reboot(&mut guest, 1);
    guest.case("a reboot gives every block back to the host", |guest| {
        let stats = guest.vm.stats();
        assert_eq!(stats.number("plugged_size"), 0);
        let freed = ["discarded_bytes", "shown_free_bytes"].map(|field| stats.number(field) - discarded);
        assert_eq!(freed, [REGION; 2], "given back, and shown free by the host");
        let resident = stats.number("host_resident_bytes");
        assert!(resident <= BOOT, "{resident} bytes are resident of {BOOT}");
    });
    guest.case("what is requested comes back, and it is empty", |guest| {
        given(guest, 256 * MIB);
        empty(guest, BOOT_GPA, LOOK);
        empty(guest, REGION_GPA, 256 * MIB);
        // But for what programs have put there since.
        let found = guest.look_at(REGION_GPA, 256 * MIB);
        assert!(found.nonzero * 4096 <= USED, "not zero: {found:?}");
    });
    guest.case("more is requested than the guest has", |guest| {
        guest.fill(95);
        guest.shell(&format!("cd {DRIVER} && echo virtio* >unbind; cd /"));
        guest.vm.try_resize(BOOT + 384 * MIB, 1);
    });
    kexec(&mut guest);
    guest.case("that much it has after kexec", |guest| {
        assert_eq!(
            guest.vm.stats().number("plugged_size"),
            256 * MIB,
            "nobody has reset the machine"
        );
        given(guest, 384 * MIB);
        empty(guest, REGION_GPA, 384 * MIB);
        guest.vm.resize_to(BOOT);
        let stats = guest.vm.stats();
        assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
    });
}

/// Boots again, as the `count`th time.
fn reboot(guest: &mut LinuxGuest, count: u64) {
    let pid = guest.vm.pid();
    guest.last_words("reboot -f");
    guest.wait_for_shell();
    let stats = guest.vm.stats();
    assert_eq!(
        (stats.number("reboots"), stats.number("pid")),
        (count, u64::from(pid))
    );
}

/// Loads the driver, which must then take `bytes`, by the guest's account and by the host's.
fn given(guest: &mut LinuxGuest, bytes: u64) {
    let boot_kib = guest.mem_total_kib();
    guest.shell("load virtio_mem");
    let stats = guest
        .vm
        .wait_until("what is requested", |stats| stats.number("plugged_size") == bytes);
    assert_eq!(stats.number("requested_size"), bytes);
    guest.mem_total_becomes(boot_kib + bytes / 1024);
}

/// Looks for what was written before.
fn empty(guest: &mut LinuxGuest, gpa: u64, bytes: u64) {
    let found = guest.look_at(gpa, bytes);
    assert_eq!((found.pages, found.stamped), (bytes / 4096, 0), "at {gpa:#x}");
}

/// The guest's own kernel and ramdisk as disks, for [`kexec`].
fn disks(release: Release, home: &Home) -> [String; 2] {
    let image = LinuxImage::prepare(release, &home.files());
    [(image.kernel, "kernel"), (image.initrd, "initrd")].map(|(from, name)| {
        let disk = home.files().join(format!("{name}.disk"));
        let mut bytes = fs::read(&from).unwrap();
        // Whole sectors: neither minds zeros at its end.
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        fs::write(&disk, bytes).unwrap();
        disk.to_string_lossy().into_owned()
    })
}

/// Starts the same kernel once more, from within: the machine and its devices are not reset.
fn kexec(guest: &mut LinuxGuest) {
    let reboots = guest.vm.stats().number("reboots");
    guest.shell("load virtio_blk; cat /dev/vda >/tmp/kernel && cat /dev/vdb >/tmp/initrd");
    guest.last_words("memcheck kexec /tmp/kernel /tmp/initrd \"$(cat /proc/cmdline)\"");
    guest.wait_for_shell();
    assert_eq!(guest.vm.stats().number("reboots"), reboots);
}
