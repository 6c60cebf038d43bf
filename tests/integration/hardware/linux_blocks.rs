//! A stock Debian kernel takes and gives memory block by block, over kernels and block sizes, and all of it is real: it
//! can be filled, the host gets it back, and it comes back empty.
//!
//! Every run of [`steps`] is one box and one guest with several cases. All pairs of kernel and block size are tests;
//! those that are ignored take another half an hour and run with `--run-ignored all`.

use integration_tests::{Home, LinuxGuest, Parts, Release, needs_hardware_kvm_and};

const MIB: u64 = 1 << 20;

/// Where the region begins with less than 3 GiB of boot memory.
const REGION_GPA: u64 = 4 << 30;

/// How much of the region is looked through for what was filled in.
const LOOK: u64 = 64 * MIB;
/// What the shell and the program that looks may have used of new memory.
const USED: u64 = 8 * MIB;

const BOOT_MIB: u64 = 448;

/// What is plugged goes to `ZONE_MOVABLE`, so that it can be taken away again.
const MOVABLE: &str = "memhp_default_state=online_movable";

/// How a device is stepped through: sizes in blocks, each asked for after the one before has been reached.
struct Walk {
    block_mib: u64,
    region_blocks: u64,
    /// From nothing up to something.
    up: &'static [u64],
    /// And down to nothing.
    down: &'static [u64],
}

/// Linux puts memory online in blocks of 128 MiB of its own: 64 of the device's.
const BLOCKS_OF_2_MIB: Walk = Walk {
    block_mib: 2,
    region_blocks: 128,
    up: &[1, 2, 3, 62, 63, 64, 65, 66],
    down: &[65, 64, 63, 62, 2, 1, 0],
};

/// Two of the device's in one of Linux's.
const BLOCKS_OF_64_MIB: Walk = Walk {
    block_mib: 64,
    region_blocks: 4,
    up: &[1, 2, 3, 4],
    down: &[3, 2, 1, 0],
};

/// One of the device's is one of Linux's.
const BLOCKS_OF_128_MIB: Walk = Walk {
    block_mib: 128,
    region_blocks: 3,
    up: &[1, 2, 3],
    down: &[2, 1, 0],
};

/// One of the device's is two of Linux's.
const BLOCKS_OF_256_MIB: Walk = Walk {
    block_mib: 256,
    region_blocks: 2,
    up: &[1, 2],
    down: &[1, 0],
};

#[test]
fn blocks_of_2_mib_on_6_12() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_12), || {
        steps(Release::V6_12, &BLOCKS_OF_2_MIB);
    });
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn blocks_of_2_mib_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || {
        steps(Release::V6_1, &BLOCKS_OF_2_MIB);
    });
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn blocks_of_64_mib_on_6_12() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_12), || {
        steps(Release::V6_12, &BLOCKS_OF_64_MIB);
    });
}

#[test]
fn blocks_of_64_mib_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || {
        steps(Release::V6_1, &BLOCKS_OF_64_MIB);
    });
}

#[test]
fn blocks_of_128_mib_on_6_12() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_12), || {
        steps(Release::V6_12, &BLOCKS_OF_128_MIB);
    });
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn blocks_of_128_mib_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || {
        steps(Release::V6_1, &BLOCKS_OF_128_MIB);
    });
}

#[test]
#[ignore = "full matrix of kernels and block sizes"]
fn blocks_of_256_mib_on_6_12() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_12), || {
        steps(Release::V6_12, &BLOCKS_OF_256_MIB);
    });
}

#[test]
fn blocks_of_256_mib_on_6_1() {
    needs_hardware_kvm_and(Parts::kernel(Release::V6_1), || {
        steps(Release::V6_1, &BLOCKS_OF_256_MIB);
    });
}

/// All cases with one guest.
fn steps(release: Release, walk: &Walk) {
    let home = Home::new();
    let (memory, region, block) = (
        format!("{BOOT_MIB}M"),
        format!("{}M", walk.region_blocks * walk.block_mib),
        format!("{}M", walk.block_mib),
    );
    let arguments = ["--memory", &memory, "--hotplug", &region, "--block-size", &block];
    let mut guest = LinuxGuest::boot_release(release, &home, "lin", &arguments, MOVABLE);
    let before = guest.mem_total_kib();
    let region = walk.region_blocks * walk.block_mib * MIB;

    guest.case("the kernel is the one that was meant", |guest| {
        let version = guest.shell("uname -r");
        assert!(
            version.starts_with(&format!("{}.", release.number())),
            "{version}"
        );
    });
    guest.case("up block by block, MemTotal exact", |guest| {
        walk.up
            .iter()
            .for_each(|blocks| step(guest, walk, before, *blocks));
    });
    guest.case("down block by block, MemTotal exact", |guest| {
        walk.down
            .iter()
            .for_each(|blocks| step(guest, walk, before, *blocks));
    });
    guest.case("95 % filled after growing", |guest| fill(guest, walk, before));
    guest.case("resident memory falls by what is given back", |guest| {
        let full = guest.vm.stats();
        step(guest, walk, before, 0);
        let empty = guest.vm.stats();
        let [full, empty_bytes] = [&full, &empty].map(|stats| stats.number("host_resident_bytes"));
        assert!(
            full - empty_bytes >= region * 95 / 100,
            "{region} bytes were given back, but resident memory went from {full} to {empty_bytes}"
        );
        assert!(
            empty_bytes <= BOOT_MIB * MIB,
            "{empty_bytes} bytes resident of {BOOT_MIB} MiB"
        );
    });
    guest.case("95 % filled after growing again", |guest| {
        fill(guest, walk, before);
    });
    guest.case("memory comes back empty", |guest| {
        step(guest, walk, before, 0);
        step(guest, walk, before, walk.region_blocks);
        let found = guest.look_at(REGION_GPA, region);
        assert_eq!((found.pages, found.stamped), (region / 4096, 0));
        // But for what programs have put there since.
        assert!(found.nonzero * 4096 <= USED, "not zero: {found:?}");
        step(guest, walk, before, 0);
    });
    let stats = guest.vm.stats();
    assert_eq!((stats.number("nacks"), stats.number("errors")), (0, 0));
}

/// To `blocks` blocks, where the guest's own account and the host's must agree to the byte.
fn step(guest: &mut LinuxGuest, walk: &Walk, before_kib: u64, blocks: u64) {
    let plugged = blocks * walk.block_mib * MIB;
    guest.vm.resize_to(BOOT_MIB * MIB + plugged);
    guest.mem_total_becomes(before_kib + plugged / 1024);
    let stats = guest.vm.stats();
    let counted = ["plugged_size", "requested_size"].map(|field| stats.number(field));
    assert_eq!(
        counted, [plugged; 2],
        "plugged and requested with {blocks} blocks"
    );
}

/// Fills the guest with the whole region plugged, and looks for what was written there.
fn fill(guest: &mut LinuxGuest, walk: &Walk, before_kib: u64) {
    step(guest, walk, before_kib, walk.region_blocks);
    let region = walk.region_blocks * walk.block_mib * MIB;
    let filled = guest.fill(95);
    assert!(
        filled > region,
        "{filled} bytes filled do not reach all of a region of {region}"
    );
    let resident = guest.vm.stats().number("host_resident_bytes");
    assert!(
        resident >= filled,
        "{filled} bytes filled, but {resident} are resident"
    );
    // What was written lies where the region is, so that "empty" above means something.
    let found = guest.look_at(REGION_GPA, LOOK);
    assert_eq!(found.pages, LOOK / 4096);
    assert!(
        found.stamped * 100 >= found.pages * 90,
        "only few stamps in the region: {found:?}"
    );
}
