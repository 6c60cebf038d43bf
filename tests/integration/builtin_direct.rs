//! Programs of the built-in guest whose memory a disk is at (`O_DIRECT`) while the block that it is on is to be emptied.

use integration_tests::{Home, Running, eventually, views};

#[test]
fn a_block_that_a_disk_is_reading_from_or_writing_to_is_put_off_and_leaves_later() {
    let home = Home::new();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    let mut vm = home.start(
        "direct",
        &[
            "--disk",
            &root,
            "--memory",
            "32M",
            "--hotplug",
            "32M,requested=32M",
            "--cpus",
            "2",
            "--cmdline",
            "root=vda migrate=remap validate",
            "--program",
            "/bin/direct pages=1024",
        ],
    );
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 32 << 20
    });
    vm.wait_for_checks(2000);
    // So slowly that a disk comes to pages of a block that is being emptied already.
    let rate = |mib: &str| {
        vm.order("guest", &["sysfs", "memory/migrate_rate_mib", mib])
            .success()
    };
    rate("50");
    // One after the other is emptied and comes back, also while the disk is at work.
    let (mut put_off, mut emptied) = (0, 0);
    eventually("blocks that were put off, and others that were emptied", || {
        for block in views::blocks(&vm.guest("blocks")) {
            if block.state == "online" && block.used_pages > 0 {
                match offline(&vm, block.index) {
                    Ok(()) => emptied += 1,
                    Err(why) if why.contains("pinned by direct I/O of /bin/direct[1]") => put_off += 1,
                    Err(_) => {}
                }
            }
        }
        (put_off >= 5 && emptied >= 20).then_some(())
    });
    rate("0");
    // They leave all the same, as no transfer takes for ever.
    vm.resize("32M");
    vm.wait_for_checks(2000);
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert!(counts["pgmigrate_success"] > 0, "{counts:?}");
    assert!(
        counts["direct_read_pages"] > 0 && counts["direct_written_pages"] > 0,
        "{counts:?}"
    );
}

/// Empties a block and brings it back; or why it could not be emptied.
fn offline(vm: &Running, index: u64) -> Result<(), String> {
    let state = format!("memory/memory{index}/state");
    let outcome = vm.order("guest", &["sysfs", &state, "offline"]);
    if outcome.status != 0 {
        return Err(outcome.stderr);
    }
    vm.order("guest", &["sysfs", &state, "online"]).success();
    Ok(())
}
