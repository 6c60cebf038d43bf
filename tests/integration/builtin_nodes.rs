//! Where the descriptors of hot-added memory are, and nodes that come with their first block and go with their last.

use std::collections::BTreeMap;

use integration_tests::{Home, Outcome, Running, eventually, views};

use crate::builtin_kinds::{DIRECT, STANDS_STILL, UNLIMITED, WRITE_BACK, root};
use crate::held::{Held, Kind};

const MIB: u64 = 1 << 20;

fn read(vm: &Running, path: &str) -> String {
    vm.order("guest", &["sysfs", path])
        .success()
        .trim_end()
        .to_owned()
}

fn write(vm: &Running, path: &str, value: &str) -> Outcome {
    vm.order("guest", &["sysfs", path, value])
}

fn count(vm: &Running, name: &str) -> u64 {
    views::vmstat(&vm.guest("vmstat"))[name]
}

/// Waits until so many frames of blocks hold descriptors: the host knows of a size a moment before the guest has noted it.
fn wait_for_memmap(vm: &Running, nr_pages: u64) {
    eventually("frames for descriptors", || {
        (count(vm, "nr_memmap_pages") == nr_pages).then_some(())
    });
}

/// Waits until the guest follows the host's wishes, and answers.
fn wait_for_answers(vm: &mut Running) {
    vm.wait_for_driver();
    vm.wait_for_answers();
}

fn assert_nothing_went_wrong(vm: &Running) {
    let stats = vm.stats();
    let wrong = ["violations", "guest_faults", "errors"].map(|field| stats.number(field));
    assert_eq!(wrong, [0; 3]);
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
}

/// 48 MiB of descriptors for 32 MiB of boot memory.
const FAR: [&str; 4] = ["--memory", "32M", "--hotplug", "6G,block=128M"];
const FAR_TOTAL: u64 = 6 * 1024 * MIB + 32 * MIB;

#[test]
fn a_small_guest_grows_far_with_descriptors_on_the_blocks_and_is_held_back_with_its_own() {
    let home = Home::new();
    let mut vm = home.start("own", &FAR);
    wait_for_answers(&mut vm);
    assert_eq!(read(&vm, "memory/memmap_on_memory"), "off");
    let before = count(&vm, "nr_free_pages");
    let report = vm.try_resize(FAR_TOTAL, 4);
    assert_eq!(
        (report.text("outcome"), report.text("guest_reason")),
        ("incomplete", "no-memory")
    );
    let held = vm.stats().number("plugged_size");
    assert!((512 * MIB..4096 * MIB).contains(&held), "{held} bytes plugged");
    assert_eq!(read(&vm, "memory/memory0/memmap"), "boot");
    assert_eq!(count(&vm, "nr_memmap_pages"), 0);
    vm.resize("32M");
    // A 128th of what was plugged held descriptors, and is free again.
    let descriptors = held / 128 / 4096;
    eventually("boot memory without descriptors of blocks that have gone", || {
        (count(&vm, "nr_free_pages") + descriptors / 2 > before).then_some(())
    });
    vm.stop();

    let mut vm = home.start("far", &[&FAR[..], &["--cmdline", "memmap_on_memory=on"]].concat());
    wait_for_answers(&mut vm);
    assert_eq!(read(&vm, "memory/memmap_on_memory"), "on");
    let before = count(&vm, "nr_free_pages");
    vm.resize_to(FAR_TOTAL);
    let plugged = FAR_TOTAL - 32 * MIB;
    let own = plugged / 128 / 4096;
    wait_for_memmap(&vm, own);
    assert_eq!(read(&vm, "memory/memory0/memmap"), "block");
    assert_eq!(read(&vm, "memory/memory0/memmap_pages"), "256");
    let blocks = views::blocks(&vm.guest("blocks"));
    let online = blocks.iter().filter(|block| block.state == "online");
    let free: u64 = online.map(|block| block.free_pages + block.used_pages).sum();
    assert_eq!(free, plugged / 4096 - own);
    let cost = (before + free).saturating_sub(count(&vm, "nr_free_pages"));
    assert!(cost < 2 * MIB / 4096, "{cost} frames of boot memory for 6 GiB");
    let frame = read(&vm, "memory/memory0/phys_addr");
    let frame = u64::from_str_radix(&frame, 16).unwrap() / 4096;
    let shown = vm.order("guest", &["frame", &frame.to_string()]).success();
    assert!(shown.contains("reserved"), "{shown}");
    vm.resize("32M");
    wait_for_memmap(&vm, 0);
    assert_eq!(read(&vm, "memory/memory0/memmap"), "none");
    assert_nothing_went_wrong(&vm);
}

#[test]
fn blocks_with_their_own_descriptors_come_and_go_under_programs() {
    let home = Home::new();
    let options = [
        "--memory",
        "64M",
        "--hotplug",
        "512M,block=32M",
        "--cmdline",
        "memmap_on_memory=on validate",
    ];
    let mut vm = home.start("comes", &[&options[..], &["--program", "hog fill=60%"]].concat());
    wait_for_answers(&mut vm);
    for total in ["576M", "192M", "448M", "128M", "320M"] {
        vm.resize(total);
        vm.wait_for_checks(20);
    }
    assert!(count(&vm, "pgmigrate_success") > 0);
    // Out of use, still plugged, and back; then as the kernel's.
    let block = views::blocks(&vm.guest("blocks"))
        .into_iter()
        .find(|block| block.state == "online")
        .unwrap();
    let (state, memmap) = (
        format!("memory/memory{}/state", block.index),
        format!("memory/memory{}/memmap", block.index),
    );
    for back in ["online_movable", "online_kernel"] {
        write(&vm, &state, "offline").success();
        assert_eq!(read(&vm, &memmap), "none");
        write(&vm, &state, back).success();
        assert_eq!(read(&vm, &memmap), "block");
    }
    vm.wait_for_checks(20);
    assert_nothing_went_wrong(&vm);
}

/// Where node 0 has all boot memory, and node 1 a CPU and the region.
const TWO_NODES: [&str; 10] = [
    "--cpus",
    "2",
    "--node",
    "memory=96M,cpus=0,distance=10:25",
    "--node",
    "memory=0,cpus=1",
    "--hotplug",
    "128M,node=1,block=8M",
    "--cmdline",
    "validate",
];

fn zonelist(vm: &Running, node: u32) -> Vec<String> {
    let list = read(vm, &format!("node/node{node}/zonelist"));
    list.split_whitespace().map(String::from).collect()
}

fn assert_node_1_is_gone(vm: &Running) {
    eventually("node 1 being offline", || {
        (read(vm, "node/node1/state") == "offline").then_some(())
    });
    assert_eq!(read(vm, "node/has_memory"), "0");
    assert!(zonelist(vm, 0).iter().all(|zone| zone.ends_with("@0")));
    assert_eq!(zonelist(vm, 1), zonelist(vm, 0));
    eventually("the end of the tasks of node 1", || {
        read(vm, "node/node1/tasks").is_empty().then_some(())
    });
    let last = read(vm, "memory/events")
        .lines()
        .rfind(|line| line.contains("node"))
        .map(String::from);
    assert!(last.is_none_or(|last| last.ends_with("node1 online offline")));
}

fn assert_node_1_is_there(vm: &Running) {
    eventually("node 1 being online", || {
        (read(vm, "node/node1/state") == "online").then_some(())
    });
    assert_eq!(read(vm, "node/has_memory"), "0,1");
    assert_eq!(read(vm, "node/node1/tasks"), "kswapd1 kcompactd1");
    assert_eq!(zonelist(vm, 1).first().map(String::as_str), Some("Movable@1"));
    assert_eq!(zonelist(vm, 0).last().map(String::as_str), Some("Movable@1"));
    assert!(read(vm, "memory/events").contains("node1 offline online"));
}

/// Pages in use on blocks.
fn used(vm: &Running) -> u64 {
    let blocks = views::blocks(&vm.guest("blocks"));
    blocks.iter().map(|block| block.used_pages).sum()
}

#[test]
fn a_node_comes_with_its_first_block_and_goes_with_its_last_or_as_a_whole() {
    let home = Home::new();
    let programs = [
        "--program",
        "hog size=16M",
        "--program",
        "hog size=16M pages=small",
    ];
    let mut vm = home.start("nodes", &[&TWO_NODES[..], &programs].concat());
    wait_for_answers(&mut vm);
    vm.wait_for_checks(10);
    assert_eq!(read(&vm, "node/possible"), "0,1");
    assert_node_1_is_gone(&vm);
    vm.order("guest", &["migratepages", "1", "0", "1"])
        .assert_refusal(1, &["node 1 is offline"]);
    write(&vm, "node/node1/state", "online").assert_refusal(1, &["no plugged block"]);
    write(&vm, "node/node0/state", "offline").assert_refusal(1, &["boot memory"]);

    vm.resize("192M");
    assert_node_1_is_there(&vm);
    for pid in ["1", "2"] {
        vm.order("guest", &["migratepages", pid, "0", "1"]).success();
    }
    assert!(used(&vm) > 6000, "{} pages on node 1", used(&vm));

    // All of it in one go, with what is on it; it stays plugged.
    write(&vm, "node/node1/state", "offline").success();
    assert_node_1_is_gone(&vm);
    assert_eq!(vm.stats().number("plugged_size"), 96 * MIB);
    vm.wait_for_checks(10);
    write(&vm, "node/node1/state", "offline").assert_refusal(1, &["no block that is online"]);
    write(&vm, "node/node1/state", "online").success();
    assert_node_1_is_there(&vm);
    vm.order("guest", &["migratepages", "1", "0", "1"]).success();

    // Block by block, by the host.
    vm.resize("96M");
    assert_node_1_is_gone(&vm);
    vm.wait_for_checks(10);
    assert_nothing_went_wrong(&vm);
}

#[test]
fn a_node_that_cannot_go_as_a_whole_is_put_back_as_it_was_and_says_why() {
    let home = Home::new();
    let programs = ["--program", "hog fill=70%"];
    let mut vm = home.start("stays", &[&TWO_NODES[..], &programs].concat());
    wait_for_answers(&mut vm);
    vm.resize("224M");
    eventually("memory of node 1 that has nowhere to go", || {
        (used(&vm) > 20_000).then_some(())
    });
    let kernel = "memory/memory3/state";
    write(&vm, kernel, "offline").success();
    write(&vm, kernel, "online_kernel").success();
    let before = states_of_blocks(&vm);
    write(&vm, "node/node1/state", "offline").assert_refusal(
        1,
        &[
            "programs need its memory",
            "KiB that must remain",
            "node 1 is as it was",
        ],
    );
    assert_eq!(states_of_blocks(&vm), before);
    assert_eq!(read(&vm, "node/node1/state"), "online");
    vm.wait_for_checks(10);
    assert_nothing_went_wrong(&vm);
}

/// State and zone of each block.
fn states_of_blocks(vm: &Running) -> Vec<(String, String)> {
    let blocks = views::blocks(&vm.guest("blocks")).into_iter();
    blocks.map(|block| (block.state, block.zone)).collect()
}

/// What has happened after the event with that number, and the number of the last.
fn events_after(vm: &Running, number: u64) -> (Vec<String>, u64) {
    let listed = read(vm, &format!("memory/events/{number}"));
    let lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    let last = lines.last().map_or(number, |(number, _)| number.parse().unwrap());
    (
        lines.into_iter().map(|(_, event)| event.to_owned()).collect(),
        last,
    )
}

/// Whether a block's going out of use is among these events, and its coming back after that.
fn went_and_came(events: &[String], block: usize) -> bool {
    let place = |step: &str| {
        let event = format!("memory{block} {step}");
        events.iter().rposition(|known| *known == event)
    };
    let (gone, back) = (place("going-offline offline"), place("offline online"));
    gone.is_some() && gone < back
}

/// How often the pages of a block are looked at that are busy and stay so: `BUSY_PASSES` of the guest.
const BUSY_PASSES: u64 = 16;

/// A block that is online for the kernel, above those with programs' memory.
const KERNELS: usize = 5;

/// A node is to go of which a disk that stands still is to read into a page: who has it is named.
fn give_up_for_a_pinned_page(vm: &Running, held: &Held<'_>) {
    let pid = held.pid.to_string();
    let on_blocks = || held.frames().into_iter().filter(|frame| frame.block.is_some());
    eventually("pages of node 1 that the disk is to read into", || {
        vm.limit_disk(0, UNLIMITED);
        vm.order("guest", &["migratepages", &pid, "0", "1"]).success();
        vm.limit_disk(0, STANDS_STILL);
        let is_pinned = || on_blocks().any(|frame| frame.has(&["pinned"]));
        (0..20).any(|_| is_pinned()).then_some(())
    });
    let why = format!("is pinned by direct I/O of kind[{pid}]; node 1 is as it was");
    write(vm, "node/node1/state", "offline").assert_refusal(1, &[&why]);
    vm.limit_disk(0, UNLIMITED);
    // The others are for pages that nobody has pinned.
    eventually("its pages on node 0", || {
        vm.order("guest", &["migratepages", &pid, "1", "0"]).success();
        on_blocks().next().is_none().then_some(())
    });
}

/// A node is to go whose pages are on their way to a disk that stands still: blocks without such pages go, and come back.
fn give_up_for_busy_pages(vm: &Running, held: &Held<'_>) {
    vm.limit_disk(0, STANDS_STILL);
    let busy_by_block = || {
        let mut busy = BTreeMap::<u64, u64>::new();
        let frames = held.frames().into_iter();
        for frame in frames.filter(|frame| frame.has(&["writeback"]) || frame.has(&["locked"])) {
            frame
                .block
                .into_iter()
                .for_each(|block| *busy.entry(block).or_default() += 1);
        }
        busy
    };
    eventually("pages on their way to the disk", || {
        (!busy_by_block().is_empty()).then_some(())
    });
    let (_, begun) = events_after(vm, 0);
    let fails = count(vm, "pgmigrate_fail");
    let outcome = write(vm, "node/node1/state", "offline");
    let fails = count(vm, "pgmigrate_fail") - fails;
    let busy = busy_by_block();
    // The highest comes first.
    let (&first, &pages) = busy.last_key_value().unwrap();
    let why = format!("block {first}: ");
    outcome.assert_refusal(1, &[&why, "is being written to", "; node 1 is as it was"]);
    let (events, _) = events_after(vm, begun);
    assert!(
        [KERNELS, 15].iter().all(|&block| went_and_came(&events, block)),
        "{events:?}"
    );
    // Each of them was looked at once in each pass.
    assert!(
        (1..=BUSY_PASSES * pages).contains(&fails),
        "{fails} for {pages} pages"
    );
}

#[test]
fn a_node_that_is_given_up_half_way_has_all_of_its_blocks_again_where_they_were() {
    const WRITTEN: Kind = Kind {
        flags: &["file", "private"],
        ..WRITE_BACK
    };
    const READ: Kind = Kind { pages: 64, ..DIRECT };
    let home = Home::new();
    let root = root(&home);
    let mut arguments = TWO_NODES[..8].to_vec();
    let programs = [&WRITTEN, &READ].map(|kind| kind.program("100M"));
    arguments.extend(["--disk", &root, "--cmdline", "root=vda migrate=remap validate"]);
    arguments.extend(["--program", "hog size=16M pages=small"]);
    programs
        .iter()
        .for_each(|program| arguments.extend(["--program", program]));
    let mut vm = home.start("half", &arguments);
    wait_for_answers(&mut vm);
    vm.resize("128M");
    let [written, read_into] = [&WRITTEN, &READ].map(|kind| Held::by(&vm, kind));
    eventually("memory of both programs on node 1", || {
        for pid in ["1", "2"] {
            vm.order("guest", &["migratepages", pid, "0", "1"]).success();
        }
        (written.blocks().values().sum::<u64>() >= 256 && used(&vm) > 4000).then_some(())
    });
    // More blocks, which nobody needs: they are the first to go. One of them is the kernel's.
    vm.resize("224M");
    let kernels = format!("memory/memory{KERNELS}/state");
    write(&vm, &kernels, "offline").success();
    write(&vm, &kernels, "online_kernel").success();
    let states = states_of_blocks(&vm);
    give_up_for_a_pinned_page(&vm, &read_into);
    assert_eq!(states_of_blocks(&vm), states);
    give_up_for_busy_pages(&vm, &written);
    assert_eq!(states_of_blocks(&vm), states);
    vm.limit_disk(0, UNLIMITED);
    vm.resize("96M");
    assert_node_1_is_gone(&vm);
    vm.wait_for_checks(10);
    assert_nothing_went_wrong(&vm);
    vm.stop();
}
