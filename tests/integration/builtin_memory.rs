//! Memory blocks come and go under the built-in guest while its programs check their data.

use integration_tests::{Home, eventually, views};

const MIB: u64 = 1 << 20;

#[test]
fn hogs_verify_through_growing_and_shrinking_and_their_pages_are_moved() {
    let home = Home::new();
    let programs = [
        "--program",
        "hog fill=35% pages=mixed seed=7",
        "--program",
        "hog fill=35% pages=huge seed=8",
    ];
    let mut vm = home.start(
        "mem",
        &[&["--memory", "128M", "--hotplug", "512M"], &programs[..]].concat(),
    );
    vm.wait_for_driver();
    for total in ["384M", "192M", "640M", "128M"] {
        vm.resize(total);
        vm.wait_for_checks(20);
    }
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert!(counts["pgmigrate_success"] > 0, "no page was moved: {counts:?}");
    assert!(
        counts["blocks_unplugged"] > 0,
        "no block was unplugged: {counts:?}"
    );
    assert_eq!(counts["blocks_plugged"], counts["blocks_unplugged"]);
    let stats = vm.stats();
    assert_eq!(stats.number("plugged_size"), 0);
    assert_eq!(
        stats.number("violations") + stats.number("guest_faults") + stats.number("errors"),
        0
    );
    assert_eq!(
        stats.number("discarded_bytes"),
        counts["blocks_unplugged"] * stats.number("block_size")
    );
}

#[test]
fn each_size_of_block_can_be_plugged_and_unplugged() {
    // The descriptors of a block of 1 GiB are 8 MiB, more than the largest chunk of frames.
    for (block, region, total) in [
        ("2M", "256M", "130M"),
        ("4M", "256M", "132M"),
        ("128M", "256M", "256M"),
        ("1G", "2G", "1152M"),
    ] {
        let home = Home::new();
        let arguments = [
            "--memory",
            "128M",
            "--hotplug",
            region,
            "--block-size",
            block,
            "--program",
            "hog fill=50%",
        ];
        let mut vm = home.start("mem", &arguments);
        vm.wait_for_driver();
        vm.resize(total);
        vm.wait_for_checks(5);
        let stats = vm.stats();
        assert_eq!(
            stats.number("plugged_size"),
            stats.number("block_size"),
            "one block of {block}"
        );
        vm.resize("128M");
        vm.wait_for_checks(5);
        assert_eq!(vm.stats().number("plugged_size"), 0);
    }
}

#[test]
fn resident_memory_falls_by_what_was_unplugged() {
    let home = Home::new();
    let mut vm = home.start(
        "mem",
        &[
            "--memory",
            "128M",
            "--hotplug",
            "512M",
            "--program",
            "hog fill=80%",
        ],
    );
    vm.wait_for_driver();
    vm.resize("640M");
    let full = vm.wait_until("the hog filling most of 640 MiB", |stats| {
        stats.number("host_resident_bytes") >= 480 * MIB
    });
    vm.resize("128M");
    let left = vm.stats().number("host_resident_bytes");
    assert!(
        left <= 128 * MIB,
        "{left} bytes are still resident of a guest of 128 MiB"
    );
    assert!(full.number("host_resident_bytes") - left >= 352 * MIB);
    vm.wait_for_checks(5);
}

#[test]
fn memory_asked_for_at_boot_is_plugged_without_any_order() {
    let home = Home::new();
    let mut vm = home.start("mem", &["--memory", "64M", "--hotplug", "256M,requested=128M"]);
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 128 * MIB
    });
    assert_eq!(vm.stats().number("total_plugged"), 192 * MIB);
}

#[test]
fn a_shrink_that_cannot_be_done_says_how_far_it_got_and_why() {
    let home = Home::new();
    // The hog needs 300 MiB whatever the guest's size: 128 MiB cannot hold it.
    let mut vm = home.start(
        "mem",
        &[
            "--memory",
            "128M",
            "--hotplug",
            "512M,requested=512M",
            "--program",
            "hog size=300M",
        ],
    );
    vm.wait_until("the hog holding its 300 MiB", |stats| {
        stats.number("host_resident_bytes") >= 300 * MIB
    });
    vm.wait_for_checks(5);
    let outcome = vm.order("resize", &["128M", "--wait", "8"]);
    outcome.assert_refusal(1, &["MiB"]);
    assert!(
        outcome.stderr.contains("no-memory") || outcome.stderr.contains("memory"),
        "no reason in {outcome:?}"
    );
    let stats = vm.stats();
    assert!(
        stats.number("plugged_size") >= 172 * MIB,
        "the hog's memory was taken: {stats:?}"
    );
    vm.wait_for_checks(5);
    // Nothing is lost for good: growing again is reached at once.
    vm.resize("640M");
    vm.wait_for_checks(5);
}

#[test]
fn the_last_of_several_orders_is_the_one_that_counts() {
    let home = Home::new();
    let mut vm = home.start(
        "mem",
        &[
            "--memory",
            "128M",
            "--hotplug",
            "512M",
            "--program",
            "hog fill=60%",
        ],
    );
    vm.wait_for_driver();
    for total in ["640M", "128M", "512M", "256M"] {
        vm.order("resize", &[total]).success();
    }
    vm.wait_until("the last order being reached", |stats| {
        stats.number("total_plugged") == 256 * MIB
    });
    vm.wait_for_checks(5);
    assert_eq!(vm.stats().number("violations"), 0);
}

#[test]
fn a_hog_that_follows_the_guests_size_grows_and_shrinks_with_it() {
    let home = Home::new();
    let mut vm = home.start(
        "mem",
        &[
            "--memory",
            "128M",
            "--hotplug",
            "256M",
            "--program",
            "hog fill=60%",
        ],
    );
    vm.wait_for_driver();
    vm.wait_for_checks(1);
    vm.resize("384M");
    let grown = eventually("the hog growing", || {
        let rss = vm.programs()[0].rss_kib;
        (rss >= 192 << 10).then_some(rss)
    });
    vm.resize("128M");
    let shrunk = vm.programs()[0].rss_kib;
    assert!(
        shrunk < grown && shrunk <= 128 << 10,
        "{grown} KiB became {shrunk} KiB"
    );
}
