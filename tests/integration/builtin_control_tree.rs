//! The guest's control tree: blocks looked at, taken out of use and put back in use, into which zone new ones go, and how fast they are
//! emptied, by an operator while the guest runs.

use integration_tests::{Home, Running, eventually, views};

const MIB: u64 = 1 << 20;

impl Tree for Running {}

trait Tree: Ask {
    fn read(&self, path: &str) -> String {
        self.ask(&["sysfs", path]).success().trim_end().to_string()
    }

    fn write(&self, path: &str, value: &str) -> integration_tests::Outcome {
        self.ask(&["sysfs", path, value])
    }
}

trait Ask {
    fn ask(&self, words: &[&str]) -> integration_tests::Outcome;
}

impl Ask for Running {
    fn ask(&self, words: &[&str]) -> integration_tests::Outcome {
        self.order("guest", words)
    }
}

#[test]
fn blocks_are_taken_out_of_use_and_put_back_by_hand() {
    let home = Home::new();
    let options = ["--memory", "96M", "--hotplug", "256M", "--cmdline", "validate"];
    let hog = ["--program", "hog fill=60%"];
    let mut vm = home.start("tree", &[&options[..], &hog].concat());
    vm.wait_for_driver();
    vm.resize("224M");
    vm.wait_for_checks(1000);
    assert_eq!(vm.read(""), "devices/\nmemory/\nnode/");
    let block_size = u64::from_str_radix(&vm.read("memory/block_size_bytes"), 16).unwrap();
    let blocks = views::blocks(&vm.guest("blocks"));
    assert_eq!(blocks.len() as u64 * block_size, 256 * MIB);
    let listed = vm.read("memory");
    assert!(listed.lines().any(|line| line == "memory3/"), "{listed}");
    assert_eq!(vm.read("memory/memory0/zone"), "Movable");
    assert_eq!(vm.read("memory/memory0/removable"), "1");

    // A block with pages in use: they move, and the programs go on.
    let used = eventually("a block that is used", || {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().position(|block| block.used_pages > 100)
    });
    let state = format!("memory/memory{used}/state");
    let events = vm.read("memory/events").lines().count();
    assert_eq!(vm.read(&state), "online");
    vm.write(&state, "offline").success();
    assert_eq!(vm.read(&state), "offline");
    let steps: Vec<String> = vm.read("memory/events").lines().map(String::from).collect();
    let ends = |line: &String, end: &str| line.ends_with(&format!("memory{used} {end}"));
    assert!(ends(&steps[events], "online going-offline"), "{steps:?}");
    assert!(ends(&steps[events + 1], "going-offline offline"), "{steps:?}");
    assert_eq!(vm.read(&format!("memory/events/{}", events + 2)), "");
    assert_eq!(vm.stats().number("plugged_size"), 128 * MIB, "it stays plugged");
    vm.write(&state, "offline").assert_refusal(1, &["is offline"]);
    vm.wait_for_checks(1000);

    // As memory for the kernel, which can go as well where the kernel can move what it has there.
    vm.write(&state, "online_kernel").success();
    assert_eq!(vm.read(&format!("memory/memory{used}/zone")), "Normal");
    assert_eq!(vm.read(&format!("memory/memory{used}/removable")), "1");

    // New blocks are left alone, and are the first to go.
    vm.write("memory/auto_online_blocks", "offline").success();
    vm.resize("256M");
    let offline = views::blocks(&vm.guest("blocks"));
    let offline: Vec<_> = offline.iter().filter(|block| block.state == "offline").collect();
    assert_eq!(offline.len() as u64 * block_size, 32 * MIB);
    vm.resize("224M");
    // The host knows a moment before the guest has noted it.
    eventually("blocks that were never in use being gone", || {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().all(|block| block.state != "offline").then_some(())
    });
    let violations = vm.stats().number("violations");
    assert_eq!(violations, 0);
    vm.order("stop", &[]).success();
    vm.wait_for_end();
    home.assert_nothing_left();
}

#[test]
fn a_rate_holds_the_emptying_of_blocks_back_which_is_called_off_half_way() {
    let home = Home::new();
    let options = [
        "--memory",
        "192M",
        "--hotplug",
        "128M",
        "--program",
        "hog fill=60%",
    ];
    let mut vm = home.start("slow", &options);
    vm.wait_for_driver();
    vm.resize("320M");
    vm.wait_for_checks(1000);
    vm.write("memory/migrate_rate_mib", "1").success();
    assert_eq!(vm.read("memory/migrate_rate_mib"), "1");
    let moved = |vm: &Running| views::vmstat(&vm.guest("vmstat"))["pgmigrate_success"];
    let before = moved(&vm);
    vm.try_resize(192 * MIB, 1);
    assert!(vm.stats().number("plugged_size") > 0, "nothing held it back");
    assert!(
        moved(&vm) - before < 16 * MIB / 4096,
        "a second or two at 1 MiB a second"
    );
    // What is just being emptied, and what was to come: all of it comes back.
    let states = |vm: &Running| -> Vec<String> {
        let blocks = views::blocks(&vm.guest("blocks")).into_iter();
        blocks.map(|block| block.state).collect()
    };
    eventually("blocks that are to be emptied", || {
        states(&vm)
            .iter()
            .any(|state| state == "going-offline")
            .then_some(())
    });
    vm.resize("320M");
    eventually("all blocks in use", || {
        states(&vm).iter().all(|state| state == "online").then_some(())
    });
    vm.write("memory/migrate_rate_mib", "0").success();
    vm.resize("192M");
    assert!(moved(&vm) - before > 16 * MIB / 4096);
    vm.wait_for_checks(1000);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let home = Home::new();
    let mut vm = home.start("refuses", &["--memory", "64M", "--hotplug", "64M"]);
    vm.wait_for_driver();
    vm.wait_for_answers();
    for (words, reason) in [
        (&["sysfs", "memory/blocks"][..], "there is no memory/blocks"),
        (
            &["sysfs", "memory/memory99/state"],
            "blocks are memory0 to memory",
        ),
        (
            &["sysfs", "memory/memory0/state", "on"],
            "on is not one of offline, online_movable",
        ),
        (
            &["sysfs", "memory/memory0/state", "online"],
            "block 0 is unplugged",
        ),
        (&["sysfs", "memory/memory0/zone", "DMA"], "cannot be written"),
        (&["sysfs", "memory", "1"], "is a directory"),
        (&["sysfs", "memory/migrate_rate_mib", "-1"], "-1 is no rate"),
        (&["sysfs", "memory/migrate_rate_mib", "1", "2"], "not 2 too"),
        (&["sysfs", "node/node9/distance"], "there is no node/node9"),
    ] {
        vm.ask(words).assert_refusal(1, &[reason]);
    }
    assert_eq!(vm.read("node/node0/distance"), "10");
    assert_eq!(vm.read("node/node0/cpulist"), "0");
}

#[test]
fn packing_gathers_what_is_in_use_in_the_fewest_blocks_under_a_program_that_checks_it() {
    let home = Home::new();
    let options = ["--memory", "48M", "--hotplug", "128M", "--cmdline", "validate"];
    let mut vm = home.start(
        "pack",
        &[&options[..], &["--program", "scatter fill=80% huge=1"]].concat(),
    );
    vm.wait_for_driver();
    vm.resize("176M");
    let used = |vm: &Running| {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().filter(|block| block.used_pages > 0).count()
    };
    vm.wait_for_checks(10);
    let before = used(&vm);
    let said = vm.ask(&["pack"]).success();
    let after = used(&vm);
    assert!(said.contains(&format!("{after} blocks in use")), "{said}");
    assert!(
        after < before && said.contains(&format!("{} blocks emptied", before - after)),
        "{before}: {said}"
    );
    let blocks = views::blocks(&vm.guest("blocks"));
    let all_online = blocks.iter().all(|block| block.state == "online");
    assert!(all_online, "a block stayed out of use: {blocks:?}");
    let pages: u64 = blocks.iter().map(|block| block.used_pages).sum();
    let block_size = u64::from_str_radix(&vm.read("memory/block_size_bytes"), 16).unwrap();
    let fewest = (pages * 4096).div_ceil(block_size);
    assert!(after as u64 <= fewest + 2, "{after} blocks for {pages} pages");
    vm.wait_for_checks(10);
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
    vm.ask(&["pack", "now"])
        .assert_refusal(1, &["pack takes no arguments"]);
}
