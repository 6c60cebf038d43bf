//! How fast blocks are emptied, and how that is given up half way: everything is back in use then, and nobody has noticed.

use std::time::Instant;

use integration_tests::{Home, Running, eventually, views};

const MIB: u64 = 1 << 20;

fn moved(vm: &Running) -> u64 {
    views::vmstat(&vm.guest("vmstat"))["pgmigrate_success"]
}

fn set(vm: &Running, path: &str, value: &str) -> integration_tests::Outcome {
    vm.order("guest", &["sysfs", path, value])
}

fn in_state(vm: &Running, state: &str) -> usize {
    let blocks = views::blocks(&vm.guest("blocks"));
    blocks.iter().filter(|block| block.state == state).count()
}

/// Blocks that are half empty: each is done with before the rate is reached, so that only an account of all of them together keeps it.
#[test]
fn a_rate_holds_over_blocks_that_leave_for_the_host_by_hand_and_to_be_packed() {
    const RATE_MIB: u64 = 2;
    let home = Home::new();
    let options = [
        "--memory",
        "64M",
        "--hotplug",
        "96M,requested=96M",
        "--block-size",
        "2M",
    ];
    let program = ["--program", "scatter fill=60% from=150M"];
    let mut vm = home.start("pace", &[&options[..], &program].concat());
    vm.wait_for_driver();
    vm.wait_for_checks(10);
    set(&vm, "memory/migrate_rate_mib", "2").success();
    let (before, begun) = (moved(&vm), Instant::now());
    // As much as the time allows, and what one look takes; a huge page is always one.
    let assert_rate = |what: &str| {
        let moved = moved(&vm) - before;
        let allowed = RATE_MIB as f64 * 256.0 * begun.elapsed().as_secs_f64() + 512.0;
        assert!(
            moved as f64 <= allowed,
            "{what}: {moved} pages, {allowed} allowed"
        );
        moved
    };
    // It moves all the time, if slowly: nothing has stalled.
    let report = vm.try_resize(96 * MIB, 3);
    assert_eq!(
        (report.text("outcome"), report.text("cause")),
        ("incomplete", "time-up")
    );
    let first = assert_rate("for the host");
    assert!(first > 0, "nothing moves");
    let events = home.run(["events", "pace", "--no-follow"]).success();
    assert!(!events.contains("stalled"), "{events}");

    vm.resize_to(vm.stats().number("plugged_size") + 64 * MIB);
    let blocks = views::blocks(&vm.guest("blocks"));
    let used = blocks
        .iter()
        .filter(|block| (1..512).contains(&block.used_pages))
        .take(4);
    for block in used {
        set(&vm, &format!("memory/memory{}/state", block.index), "offline").success();
    }
    let second = assert_rate("by hand");
    assert!(second > first, "nothing moves");
    let _ = vm.order("guest", &["pack"]);
    assert_rate("to be packed");
    let _ = vm.order("guest", &["cancel"]);
    vm.wait_for_checks(10);
    vm.stop();
}

#[test]
fn what_is_being_emptied_is_given_up_by_whoever_wanted_it_and_is_back_in_use() {
    let home = Home::new();
    let options = [
        "--memory",
        "64M",
        "--hotplug",
        "64M,requested=64M",
        "--block-size",
        "16M",
    ];
    let program = ["--program", "hog size=72M pages=small"];
    let mut vm = home.start("gives-up", &[&options[..], &program].concat());
    vm.wait_for_driver();
    vm.wait_for_checks(1000);
    set(&vm, "memory/migrate_rate_mib", "1").success();
    let online = in_state(&vm, "online");
    let used = eventually("a block that takes its time", || {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().position(|block| block.used_pages > 3000)
    });
    let state = format!("memory/memory{used}/state");

    // Whoever waits for a block to be empty hears after some seconds that it goes on; who wants it in use has that given up.
    set(&vm, &state, "offline").assert_refusal(1, &["not done within 8 s", "cancel"]);
    assert_eq!(vm.guest(&format!("sysfs {state}")).trim(), "going-offline");
    set(&vm, &state, "online_movable").success();
    assert_eq!(vm.guest(&format!("sysfs {state}")).trim(), "online");
    let log = vm.serial.text();
    assert!(
        log.contains(&format!(
            "block {used} offline: given up: somebody has cancelled it"
        )),
        "{log}"
    );

    // With a deadline the host gives up: what has not left by then is in use, and is what the guest is asked for.
    let outcome = home.run(["resize", "gives-up", "64M", "--deadline", "2"]);
    outcome.assert_refusal(1, &["time is up", "it keeps what it has"]);
    eventually("all blocks that are there being in use", || {
        (in_state(&vm, "online") == online && in_state(&vm, "going-offline") == 0).then_some(())
    });
    let stats = vm.stats();
    assert_eq!(stats.number("requested_size"), stats.number("plugged_size"));
    assert_eq!(stats.number("plugged_size"), 64 * MIB);
    vm.wait_for_checks(1000);
    vm.stop();
}

/// Emptying the block would take most of a minute.
#[test]
fn another_size_that_the_host_asks_for_is_taken_up_in_the_middle_of_a_block_whoever_wants_that_empty() {
    let home = Home::new();
    let options = [
        "--memory",
        "128M",
        "--hotplug",
        "192M,requested=64M",
        "--block-size",
        "64M",
    ];
    let program = ["--program", "hog size=48M pages=small"];
    let mut vm = home.start("changes", &[&options[..], &program].concat());
    vm.wait_for_driver();
    vm.wait_for_checks(1000);
    let block = |vm: &Running| views::blocks(&vm.guest("blocks"))[0].clone();
    let is_leaving = |vm: &Running, moved_before: u64| {
        eventually("pages that leave", || {
            (moved(vm) > moved_before && block(vm).state == "going-offline").then_some(())
        });
    };
    // All of the block's pages would have moved if the other size had waited for that.
    let assert_in_the_middle = |vm: &Running, moved_before: u64, used_pages: u64| {
        let moved = moved(vm) - moved_before;
        assert!(moved < used_pages, "{moved} of {used_pages} pages moved");
        assert_eq!(block(vm).state, "online");
        assert!(block(vm).used_pages > 0, "it was given up");
    };
    set(&vm, "memory/migrate_rate_mib", "1").success();
    let used_pages = eventually("a block that takes its time", || {
        let used_pages = block(&vm).used_pages;
        (used_pages > 10_000).then_some(used_pages)
    });
    let before = moved(&vm);

    // For the host: less, and more while that is under way.
    let report = vm.try_resize(128 * MIB, 0);
    assert_eq!(report.text("outcome"), "incomplete");
    is_leaving(&vm, before);
    vm.resize_to(256 * MIB);
    assert_in_the_middle(&vm, before, used_pages);

    // By hand.
    let (used_pages, before) = (block(&vm).used_pages, moved(&vm));
    set(&vm, "memory/memory0/state", "offline").assert_refusal(1, &["not done within 8 s"]);
    is_leaving(&vm, before);
    vm.resize_to(320 * MIB);
    assert_in_the_middle(&vm, before, used_pages);
    vm.serial
        .wait_for("block 0 offline: given up: the host has asked for another size meanwhile");
    set(&vm, "memory/migrate_rate_mib", "0").success();
    vm.wait_for_checks(10);
    vm.stop();
}

#[test]
fn another_size_is_taken_up_in_the_middle_of_a_block_whose_pages_leave_for_the_disk_too() {
    let home = Home::new();
    let swap = home.swap_image("swap", "128M").display().to_string();
    let options = [
        "--memory",
        "128M",
        "--hotplug",
        "128M,requested=64M",
        "--block-size",
        "64M",
        "--disk",
        &swap,
        "--cmdline",
        "swap=vda migrate=swapout",
    ];
    let program = ["--program", "pager size=40M pause_ms=2000"];
    let mut vm = home.start("leaves", &[&options[..], &program].concat());
    vm.wait_for_driver();
    vm.wait_for_answers();
    let block = |vm: &Running| views::blocks(&vm.guest("blocks"))[0].clone();
    let used_pages = eventually("a block that takes its time", || {
        let used_pages = block(&vm).used_pages;
        (used_pages > 8_000).then_some(used_pages)
    });
    let left = |vm: &Running| -> u64 {
        let counts = views::vmstat(&vm.guest("vmstat"));
        let ways = ["block_pages_dropped", "block_pages_written", "pgmigrate_success"];
        ways.iter().map(|way| counts[*way]).sum()
    };
    set(&vm, "memory/migrate_rate_mib", "1").success();
    let before = left(&vm);
    assert_eq!(vm.try_resize(128 * MIB, 0).text("outcome"), "incomplete");
    eventually("pages that leave", || {
        (left(&vm) > before && block(&vm).state == "going-offline").then_some(())
    });
    vm.resize_to(256 * MIB);
    let left = left(&vm) - before;
    assert!(left < used_pages, "{left} of {used_pages} pages left");
    assert_eq!(block(&vm).state, "online");
    vm.wait_for_checks(2);
    vm.stop();
}
