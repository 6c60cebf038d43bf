//! Blocks that cannot leave for as long as something lasts: they are back in use when whoever wanted them to leave does not any more, and the guest
//! tries again without being at it all the time.

use std::time::Instant;

use integration_tests::{Home, Running, eventually, views};

use crate::builtin_kinds::{STANDS_STILL, UNLIMITED};

const MIB: u64 = 1 << 20;

fn in_state(vm: &Running, state: &str) -> usize {
    let blocks = views::blocks(&vm.guest("blocks"));
    blocks.iter().filter(|block| block.state == state).count()
}

fn count(vm: &Running, name: &str) -> u64 {
    views::vmstat(&vm.guest("vmstat"))[name]
}

#[test]
fn a_disk_that_does_nothing_does_not_keep_blocks_out_of_use_whose_pages_leave_for_it() {
    let home = Home::new();
    let swap = home.swap_image("swap", "128M").display().to_string();
    let machine = "--cpus 2 --memory 64M --hotplug 64M,requested=64M --block-size 16M";
    let mut options: Vec<&str> = machine.split(' ').collect();
    options.extend(["--disk", &swap, "--cmdline", "swap=vda migrate=swapout validate"]);
    options.extend(["--program", "hog size=48M pages=small"]);
    let mut vm = home.start("stuck", &options);
    vm.wait_for_driver();
    vm.wait_for_checks(1000);
    vm.limit_disk(0, STANDS_STILL);

    // The host gives up in the middle of the wait for the disk.
    let outcome = home.run(["resize", "stuck", "64M", "--deadline", "2"]);
    outcome.assert_refusal(1, &["time is up", "it keeps what it has"]);
    let online = eventually("all blocks that are there being in use", || {
        let going = in_state(&vm, "going-offline") + in_state(&vm, "offline");
        (going == 0).then(|| in_state(&vm, "online"))
    });
    assert!(online > 0, "nobody waited for the disk");
    let stats = vm.stats();
    assert_eq!(stats.number("requested_size"), stats.number("plugged_size"));
    assert!(stats.number("disks.0.throttled") > 0, "nothing is on its way");

    vm.limit_disk(0, UNLIMITED);
    vm.resize_to(64 * MIB);
    vm.wait_for_checks(1000);
    vm.stop();
}

#[test]
fn the_guest_tries_again_after_longer_and_longer_pauses_whatever_its_programs_give_back() {
    let home = Home::new();
    let machine = "--cpus 2 --memory 48M --hotplug 128M,requested=128M";
    let mut options: Vec<&str> = machine.split(' ').collect();
    options.extend(["--cmdline", "memhp_default_state=online_kernel"]);
    // One that keeps blocks, and one that takes memory and gives it back all the time.
    options.extend(["--program", "kept what=buffer pages=10240 pause_ms=10"]);
    options.extend(["--program", "family chunks=1 children=2"]);
    let mut vm = home.start("tries", &options);
    vm.wait_for_driver();
    vm.wait_for_answers();
    eventually("all of the buffers being registered", || {
        (count(&vm, "longterm_pinned") >= 10240).then_some(())
    });
    let report = vm.try_resize(64 * MIB, 6);
    assert_eq!(report.text("outcome"), "incomplete", "{report:?}");
    assert!(
        report.text("guest_reason").contains("registered buffer"),
        "{report:?}"
    );
    let (begun, tries, ended) = (
        Instant::now(),
        count(&vm, "resize_tries"),
        count(&vm, "processes"),
    );
    eventually("programs that came and went", || {
        (count(&vm, "processes") >= ended + 100).then_some(())
    });
    let (tries, seconds) = (count(&vm, "resize_tries") - tries, begun.elapsed().as_secs());
    // The pauses begin with a tenth of a second, and are each twice as long as the one before, up to five seconds.
    assert!(
        tries <= 6 + seconds / 5,
        "{tries} tries in {seconds} s, while 100 programs ended"
    );
    let programs = vm.programs();
    assert!(programs.iter().all(|it| it.checks_failed == 0), "{programs:?}");
    vm.stop();
}

#[test]
fn an_empty_block_goes_out_of_use_however_large_it_is() {
    let home = Home::new();
    let machine = "--memory 64M --hotplug 128M,requested=128M --block-size 128M";
    let mut options: Vec<&str> = machine.split(' ').collect();
    options.extend(["--program", "pager size=2M lock=2M"]);
    let mut vm = home.start("large", &options);
    vm.wait_for_driver();
    vm.wait_for_checks(100);
    let state = "memory/memory0/state";
    vm.order("guest", &["sysfs", state, "offline"]).success();
    assert_eq!(vm.guest(&format!("sysfs {state}")).trim(), "offline");
    vm.wait_for_checks(100);
    vm.stop();
}
