//! Guest memory of every kind, and several hot-plug regions: what is given back is shown free by the host, what is not
//! the guest's is protected, what the host does not have is not plugged.

use integration_tests::{Home, HugePages, Running};

const MIB: u64 = 1 << 20;
/// Where the hot-plug region of a guest with less than 3 GiB of boot memory starts.
const REGION: u64 = 4 << 30;

/// A guest whose memory goes up and down while its program checks it.
fn comes_and_goes(vm: &mut Running) {
    vm.wait_for_driver();
    vm.resize("256M");
    vm.wait_for_checks(5);
    let grown = vm.stats().number("host_resident_bytes");
    vm.resize("96M");
    vm.wait_for_checks(5);
    let stats = vm.stats();
    let (discarded, shown) = (stats.number("discarded_bytes"), stats.number("shown_free_bytes"));
    assert!(discarded >= 160 * MIB, "{discarded} bytes");
    assert_eq!(shown, discarded, "the host shows less free than was claimed");
    let shrunk = stats.number("host_resident_bytes");
    assert!(shrunk <= 96 * MIB, "{shrunk} bytes are resident, {grown} before");
    assert_eq!(stats.number("violations") + stats.number("errors"), 0);
}

#[test]
fn a_guest_of_a_memory_file_comes_and_goes_and_the_host_shows_free_what_it_gave_back() {
    let home = Home::new();
    let mut vm = home.start(
        "memfd",
        &[
            "--memory",
            "96M",
            "--backing",
            "memfd",
            "--hotplug",
            "256M",
            "--program",
            "hog fill=60%",
        ],
    );
    comes_and_goes(&mut vm);
}

#[test]
fn a_guest_of_huge_pages_comes_and_goes_and_the_host_shows_free_what_it_gave_back() {
    let _pages = HugePages::reserve((96 + 160) / 2);
    let home = Home::new();
    let arguments = [
        "--memory",
        "96M",
        "--backing",
        "hugetlbfs",
        "--hotplug",
        "256M",
        "--program",
        "hog fill=60%",
    ];
    let mut vm = home.start("huge", &arguments);
    comes_and_goes(&mut vm);

    // All pages of the pool are in use or free again: more than there are cannot be plugged, and nobody dies of it.
    let refused = vm.order("resize", &["352M", "--wait", "5"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("BUSY"), "{refused:?}");
    assert!(vm.stats().number("busy") > 0);
    vm.resize("96M");
    vm.wait_for_checks(5);
}

#[test]
fn boot_memory_of_huge_pages_that_are_not_there_is_refused_with_what_is_missing() {
    let _pages = HugePages::reserve(16);
    let home = Home::new();
    let refused = home.run(["run", "--memory", "64M", "--backing", "hugetlbfs"]);
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("no 32 free huge pages of 2 MiB (see vm.nr_hugepages)"),
        "{refused:?}"
    );
}

#[test]
fn a_trespass_is_caught_at_block_grain_on_every_backing() {
    let _pages = HugePages::reserve(8);
    for backing in ["memfd", "hugetlbfs", "anonymous,populate"] {
        let home = Home::new();
        let region = format!("64M,requested=4M,backing={backing}");
        // The guest plugs blocks 0 and 1; block 2 begins right behind them.
        let program = format!("trespass gpa={:#x}", REGION + 4 * MIB);
        let mut vm = home.start(
            "bad",
            &["--memory", "64M", "--hotplug", &region, "--program", &program],
        );
        assert_eq!(vm.wait_for_end(), 4, "{backing}");
        let expected = "violation: guest access to unplugged block 2 of region 0 at gpa 0x100400000";
        let messages = vm.messages.text();
        assert!(messages.contains(expected), "{backing}: {messages}");
    }
}

#[test]
fn the_built_in_guest_uses_the_first_of_several_regions_and_leaves_the_others_alone() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "96M",
        "--hotplug",
        "64M",
        "--hotplug",
        "256M,block=64M,backing=memfd",
        "--program",
        "hog fill=60%",
    ];
    let mut vm = home.start("two", &arguments);
    vm.messages.wait_for(
        "warning: the built-in guest uses one --hotplug, the first (node 0); it plugs nothing of the 1 behind it (node 0)",
    );
    vm.serial.wait_for("one is enough for this guest, not used");
    vm.resize("160M");
    vm.wait_for_checks(5);
    // Only the second region has so much.
    let missing = vm.order("resize", &["224M", "--wait", "3"]);
    assert_eq!(missing.status, 1, "{missing:?}");
    assert!(
        missing.stderr.contains("no virtio-mem driver ready"),
        "{missing:?}"
    );
    let impossible = vm.order("resize", &["162M", "--region", "1"]);
    assert!(
        impossible.stderr.contains("in blocks of 67108864"),
        "{impossible:?}"
    );
    vm.resize("96M");
    vm.wait_for_checks(5);
    let stats = vm.stats();
    assert_eq!(
        (stats.number("region_size"), stats.number("plugged_size")),
        (320 * MIB, 0)
    );
    assert_eq!(stats.number("violations") + stats.number("guest_faults"), 0);
}
