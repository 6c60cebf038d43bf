//! The built-in guest and its balloon: pages go to the host and come back under programs that check their data; one target
//! for blocks and balloon; the guest's own account of its memory.

use integration_tests::{Home, Running, Stats, views};

const MIB: u64 = 1 << 20;

/// A number of the balloon's report.
fn balloon(stats: &Stats, field: &str) -> u64 {
    stats.number(&format!("balloon.{field}"))
}

fn assert_blameless(vm: &Running) {
    let stats = vm.stats();
    assert_eq!((stats.number("violations"), stats.number("guest_faults")), (0, 0));
    assert_eq!(balloon(&stats, "discard_failures"), 0);
}

#[test]
fn pages_go_to_the_host_and_come_back_under_a_program_that_checks_its_memory() {
    let home = Home::new();
    let arguments = [
        "--memory",
        "256M",
        "--balloon",
        "floor=64M",
        "--program",
        "hog fill=70%",
    ];
    let mut vm = home.start("bal", &arguments);
    let full = vm.wait_until("the hog filling most of 256 MiB", |stats| {
        stats.number("host_resident_bytes") >= 170 * MIB
    });
    vm.resize_to(128 * MIB);
    let stats = vm.stats();
    assert_eq!(balloon(&stats, "held_bytes"), 128 * MIB);
    assert!(balloon(&stats, "discarded_bytes") >= 128 * MIB);
    let left = stats.number("host_resident_bytes");
    assert!(
        left <= 128 * MIB,
        "{left} bytes are resident of a guest of 128 MiB"
    );
    assert!(full.number("host_resident_bytes") - left >= 42 * MIB);
    // The driver says so after it has the answer to its last request.
    vm.wait_until("the driver's own word", |stats| {
        balloon(stats, "actual_bytes") == 128 * MIB
    });
    let said = views::vmstat(&vm.guest("balloon"));
    assert_eq!(said["balloon_held_bytes"], 128 * MIB);
    vm.wait_for_checks(5);

    vm.resize_to(256 * MIB);
    let stats = vm.stats();
    assert_eq!(balloon(&stats, "held_bytes"), 0);
    assert_eq!(balloon(&stats, "deflated_unasked_bytes"), 0);
    vm.wait_until("the hog filling it again", |stats| {
        stats.number("host_resident_bytes") >= 170 * MIB
    });
    vm.wait_for_checks(5);
    assert_blameless(&vm);
    assert_way_is_told(&vm, 128 * MIB);
}

/// The way to a balloon of `bytes` and back is told as events, in a few steps.
fn assert_way_is_told(vm: &Running, bytes: u64) {
    let lines = vm.order("events", &["--no-follow"]).success();
    let told: Vec<(u64, u64)> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["event"] == "balloon")
        .map(|event| {
            let field = |name: &str| event[name].as_u64().unwrap();
            (field("target_bytes"), field("held_bytes"))
        })
        .collect();
    let turn = told.iter().position(|told| told.0 == 0).unwrap();
    let (there, back) = told.split_at(turn);
    assert_eq!((there[0], there[there.len() - 1]), ((bytes, 0), (bytes, bytes)));
    assert_eq!((back[0], back[back.len() - 1]), ((0, bytes), (0, 0)));
    for way in [there, back] {
        assert!((4..=10).contains(&way.len()), "{told:?}");
    }
}

#[test]
fn one_target_takes_blocks_first_and_pages_for_the_rest() {
    let home = Home::new();
    let arguments = ["--memory", "128M", "--hotplug", "256M", "--balloon", "floor=64M"];
    let mut vm = home.start("bal", &arguments);
    vm.wait_for_driver();
    // (total, plugged, in the balloon)
    for (total, plugged, held) in [
        (320 * MIB, 192 * MIB, 0),
        (96 * MIB, 0, 32 * MIB),
        (131 * MIB, 4 * MIB, MIB),
        (128 * MIB - 4096, 0, 4096),
        (384 * MIB, 256 * MIB, 0),
        (64 * MIB, 0, 64 * MIB),
    ] {
        vm.resize_to(total);
        // A guest that is slow for two seconds is helped by the balloon, which then gives the blocks back.
        let stats = vm.wait_until("blocks and balloon as they should be", |stats| {
            (stats.number("plugged_size"), balloon(stats, "held_bytes")) == (plugged, held)
        });
        assert_eq!(stats.number("guest_bytes"), total);
        assert_eq!(stats.number("total_requested"), total);
    }
    assert_blameless(&vm);
}

#[test]
fn large_blocks_that_nobody_can_use_are_left_alone_when_small_ones_will_do() {
    let home = Home::new();
    // The guest uses the first region only.
    let regions = ["--hotplug", "64M", "--hotplug", "4G,block=1G"];
    let memory = ["--memory", "128M", "--balloon", "floor=64M"];
    let mut vm = home.start("mixed", &[&memory[..], &regions].concat());
    vm.wait_until("its control socket", |_| true);
    for (total, small, held) in [
        (130 * MIB, 2 * MIB, 0),
        (192 * MIB, 64 * MIB, 0),
        (131 * MIB, 4 * MIB, MIB),
        (128 * MIB, 0, 0),
    ] {
        vm.resize_to(total);
        let stats = vm.wait_until("blocks and balloon as they should be", |stats| {
            (stats.number("plugged_size"), balloon(stats, "held_bytes")) == (small, held)
        });
        assert_eq!(stats.number("requested_size"), small);
    }
    assert_blameless(&vm);
}

#[test]
fn a_balloon_asked_for_at_boot_is_inflated_without_any_order() {
    let home = Home::new();
    let mut vm = home.start("bal", &["--memory", "128M", "--balloon", "32M"]);
    vm.wait_until("the balloon", |stats| balloon(stats, "held_bytes") == 32 * MIB);
    assert_eq!(vm.stats().number("guest_bytes"), 96 * MIB);
}

#[test]
fn the_guest_says_how_its_memory_is_used_when_it_is_asked() {
    let home = Home::new();
    let mut vm = home.start("bal", &["--memory", "128M", "--balloon"]);
    vm.wait_until("its start", |stats| stats.text("state") == "running");
    // There and back: then the driver is there.
    vm.resize_to(127 * MIB);
    vm.resize_to(128 * MIB);
    vm.order("balloon", &["stats"]).success();
    let stats = vm.stats();
    let meminfo = views::meminfo(&vm.guest("meminfo"));
    assert_eq!(
        balloon(&stats, "statistics.total_bytes"),
        meminfo["MemTotal"] * 1024
    );
    let free = balloon(&stats, "statistics.free_bytes");
    assert!(free > 64 * MIB, "{free} bytes free");
    vm.resize_to(96 * MIB);
    vm.order("balloon", &["interval", "1"]).success();
    vm.wait_until("statistics by themselves", |stats| {
        balloon(stats, "statistics.free_bytes") + 31 * MIB <= free
    });
    let total = balloon(&vm.stats(), "statistics.total_bytes");
    assert_eq!(total, meminfo["MemTotal"] * 1024 - 32 * MIB);
}

#[test]
fn what_the_balloon_cannot_do_is_refused_with_the_rule() {
    let home = Home::new();
    let mut vm = home.start("bal", &["--memory", "128M", "--balloon", "floor=96M"]);
    vm.wait_until("its control socket", |_| true);
    vm.order("resize", &["95M"])
        .assert_refusal(1, &["balloon's floor of 100663296 bytes"]);
    vm.order("resize", &["134217727"])
        .assert_refusal(1, &["no multiple of the balloon's unit, 4096 bytes"]);
    vm.order("resize", &["129M"])
        .assert_refusal(1, &["beyond the 134217728 bytes"]);
    vm.order("balloon", &["hint"])
        .assert_refusal(1, &["start the VM with --balloon hinting"]);
    let mut plain = home.start("plain", &["--memory", "64M"]);
    plain.wait_until("its control socket", |_| true);
    plain
        .order("balloon", &[])
        .assert_refusal(1, &["no balloon: start the VM with --balloon"]);
}
