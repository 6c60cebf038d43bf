//! Memory of the built-in guest that cannot leave for a disk, or that must stay where it is: files in memory alone, buffers that are registered,
//! event rings. None of it keeps a removable block, and where something has to, it is named.

use integration_tests::{Home, Running, eventually, views};

/// Where the ring of each program is that has one: its number and an address.
fn rings(vm: &Running, nr: usize) -> Vec<(u64, String)> {
    eventually("programs that say where their rings are", || {
        let text = vm.serial.text();
        let found = text.lines().filter_map(|line| {
            let (before, address) = line.split_once("]: the ring is at ")?;
            let pid = before.rsplit('[').next()?.parse().ok()?;
            Some((pid, address.trim().to_owned()))
        });
        let found: Vec<(u64, String)> = found.collect();
        (found.len() == nr).then_some(found)
    })
}

/// The row of `pagemap` for the first page of each ring: frame, state, block and flags among it.
fn frames(vm: &Running, rings: &[(u64, String)]) -> Vec<String> {
    let row = |(pid, address): &(u64, String)| {
        let listed = vm.guest(&format!("pagemap {pid} {address} 1"));
        let mut words = listed.lines().nth(1).expect("a row").split(' ');
        let (frame, block) = (words.nth(1).expect("a frame"), words.nth(5).expect("a block"));
        assert_eq!(block, "-", "a ring on removable memory: {listed}");
        frame.to_owned()
    };
    rings.iter().map(row).collect()
}

fn set_block(vm: &Running, index: u64, state: &str) -> integration_tests::Outcome {
    vm.order("guest", &["sysfs", &format!("memory/memory{index}/state"), state])
}

#[test]
fn blocks_leave_under_files_without_a_disk_registered_buffers_and_event_rings_also_by_swapout() {
    let home = Home::new();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    let swap = home.swap_image("swap", "128M").display().to_string();
    let mut vm = home.start(
        "kept",
        &[
            "--disk",
            &root,
            "--disk",
            &swap,
            "--memory",
            "64M",
            "--hotplug",
            "96M,requested=96M",
            "--cpus",
            "2",
            "--cmdline",
            "root=vda swap=vdb migrate=swapout validate",
            "--program",
            "/bin/kept what=ram pages=512 pause_ms=20",
            "--program",
            "/bin/kept what=buffer again=1 pause_ms=20",
            "--program",
            "/bin/kept what=ring pages=64 pause_ms=5",
            "--program",
            "/bin/kept what=ring in=shm pages=256 seed=2 pause_ms=5",
            "--program",
            "/bin/pager size=16M",
        ],
    );
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 96 << 20
    });
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "kept", "ps"]).status == 0
    });
    vm.wait_for_checks(200);
    let rings = rings(&vm, 2);
    let (rings_at, before) = (frames(&vm, &rings), views::vmstat(&vm.guest("vmstat")));
    let mut nr_blocks = 0;
    for block in views::blocks(&vm.guest("blocks")) {
        if block.state == "online" && block.used_pages > 0 {
            set_block(&vm, block.index, "offline").success();
            set_block(&vm, block.index, "online").success();
            nr_blocks += 1;
        }
    }
    assert!(nr_blocks >= 4, "{nr_blocks} blocks were in use");
    vm.wait_for_checks(200);
    // All of it at once, and for good.
    vm.resize("64M");
    vm.wait_for_checks(200);
    let after = views::vmstat(&vm.guest("vmstat"));
    for name in [
        "migrate_taken_over",
        "longterm_pinned",
        "longterm_moved",
        "aio_events",
        "direct_registered_pages",
        "block_pages_written",
    ] {
        assert!(after[name] > before[name], "{name} was and is {}", after[name]);
    }
    assert_eq!(frames(&vm, &rings), rings_at, "a ring has moved");
}

#[test]
fn who_keeps_a_block_is_named_where_its_state_is_set_and_in_the_result_of_a_resize() {
    let home = Home::new();
    let mut vm = home.start(
        "named",
        &[
            "--memory",
            "32M",
            "--hotplug",
            "128M,requested=128M",
            "--cmdline",
            "memhp_default_state=online_kernel validate",
            "--program",
            "kept what=buffer pages=6144 pause_ms=10",
        ],
    );
    vm.wait_for_driver();
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "named", "ps"]).status == 0
    });
    // More than boot memory has room for.
    eventually("all of the buffers being registered", || {
        let counts = views::vmstat(&vm.guest("vmstat"));
        (counts["longterm_pinned"] >= 6144).then_some(())
    });
    let whose = "is pinned by a registered buffer of kept[1]";
    let mut pinned = Vec::new();
    for block in views::blocks(&vm.guest("blocks")) {
        let outcome = set_block(&vm, block.index, "offline");
        // Others have pages of the kernel's own, or leave.
        if outcome.stderr.contains(whose) {
            pinned.push(block.index);
        }
    }
    let blocks = views::blocks(&vm.guest("blocks"));
    let is_back = |index: &u64| {
        let mut blocks = blocks.iter();
        blocks.any(|block| block.index == *index && block.state == "online")
    };
    assert!(
        !pinned.is_empty() && pinned.iter().all(is_back),
        "{pinned:?} of {blocks:?}"
    );
    let outcome = vm.order("resize", &["32M", "--wait", "6"]);
    outcome.assert_refusal(1, &["(the guest says: pinned (block ", whose]);
    vm.wait_for_checks(500);
}
