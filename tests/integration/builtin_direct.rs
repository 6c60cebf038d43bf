//! Programs of the built-in guest whose memory a disk is at (`O_DIRECT`) while the blocks that it is on are taken away.

use integration_tests::views::{self, Numbers};
use integration_tests::{Home, Running, eventually};

const MIB: u64 = 1 << 20;
/// A request in 2 ms: most of the time the disk is at some of the programs' pages, and what is written arrives soon all the same.
const SLOW: &str = r#"{"ops": {"size": 1, "refill_time": 2}}"#;
/// As fast as it can.
const UNLIMITED: &str = r#"{"ops": {"size": 0, "refill_time": 0}}"#;

#[test]
fn every_block_leaves_within_two_passes_under_programs_that_do_direct_io_without_pause() {
    let home = Home::new();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    let mut arguments = vec!["--memory", "64M", "--hotplug", "32M,requested=32M", "--cpus", "2"];
    arguments.extend(["--disk", &root, "--cmdline", "root=vda migrate=remap validate"]);
    // Small pages and huge ones.
    arguments.extend(["--program", "kind of=direct pages=512 from=80M"]);
    arguments.extend(["--program", "/bin/direct pages=1024"]);
    let mut vm = home.start("direct", &arguments);
    vm.wait_until("the requested memory being plugged", |stats| {
        stats.number("plugged_size") == 32 * MIB
    });
    vm.wait_for_checks(2000);
    vm.limit_disk(0, SLOW);
    // One after the other is emptied and comes back: those that a disk is at wait for it, and who comes later takes his pages along.
    eventually("blocks that waited, and pages that moved for a transfer", || {
        empty_each(&vm);
        let counts = counts(&vm);
        (counts["blocks_unplug_pass2"] >= 5 && counts["transfer_moved"] > 0).then_some(())
    });
    // All of them at once.
    for _ in 0..3 {
        eventually("programs on blocks", || {
            let blocks = views::blocks(&vm.guest("blocks"));
            blocks.iter().any(|block| block.used_pages > 64).then_some(())
        });
        let outcome = vm.resize("64M");
        let [first, second, later] = passes(&outcome);
        // 16 blocks of 2 MiB.
        assert_eq!((first + second, later), (16, 0), "{outcome}");
        vm.resize_to(96 * MIB);
    }
    vm.limit_disk(0, UNLIMITED);
    vm.wait_for_checks(2000);
    let counts = counts(&vm);
    assert_eq!(counts["blocks_unplug_pass_more"], 0, "{counts:?}");
    assert_eq!(counts["blocks_put_back"], 0, "{counts:?}");
    assert!(
        counts["direct_read_pages"] > 0 && counts["direct_written_pages"] > 0,
        "{counts:?}"
    );
    vm.stop();
    assert!(home.run(["disk", "check", &root]).success().contains("whole:"));
}

fn counts(vm: &Running) -> Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

/// `NAME: has SIZE after TIME; blocks left: N in pass 1, N in pass 2, N later`
fn passes(outcome: &str) -> [u64; 3] {
    let (_, counts) = outcome.split_once("; blocks left: ").expect(outcome);
    let numbers = counts
        .trim()
        .split(", ")
        .filter_map(|part| part.split(' ').next());
    let numbers: Vec<u64> = numbers.map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("three of them")
}

/// Empties each block that is in use and brings it back.
fn empty_each(vm: &Running) {
    for block in views::blocks(&vm.guest("blocks")) {
        if block.state == "online" && block.used_pages > 0 {
            let state = format!("memory/memory{}/state", block.index);
            vm.order("guest", &["sysfs", &state, "offline"]).success();
            vm.order("guest", &["sysfs", &state, "online"]).success();
        }
    }
}
