//! Drivers whose memory moves while their devices are at work: queues and buffers of the disk, the memory device, the balloon and the console leave
//! blocks of the kernel's zone and suspect frames, and nothing that was under way is lost.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use integration_tests::{Home, Running, Stats, eventually, views};

use super::builtin_kernel_memory::{blocks_in, make, sysfs, wait_for_checks};

const MIB: u64 = 1 << 20;

/// The devices of the machine, with how many areas each one's driver shares with it: two for each queue.
const DEVICES: [(&str, usize); 4] = [("vda", 2), ("memory", 2), ("balloon", 6), ("console", 4)];

/// Where the areas begin that a driver shares with its device.
fn areas(vm: &Running, device: &str) -> Vec<u64> {
    let text = sysfs(vm, &[&format!("devices/{device}/dma")]);
    let area = |word| u64::from_str_radix(word, 16).unwrap();
    text.split(' ').map(area).collect()
}

/// Has a driver move; where its areas were, and where they are then: none where one was.
fn relocate(vm: &Running, device: &str) -> [Vec<u64>; 2] {
    let before = areas(vm, device);
    sysfs(vm, &[&format!("devices/{device}/dma"), "move"]);
    let after = areas(vm, device);
    assert!(
        after.len() == before.len() && after.iter().all(|area| !before.contains(area)),
        "{device}: {before:x?} to {after:x?}"
    );
    [before, after]
}

/// Where the blocks of the machine are.
struct Blocks {
    first: u64,
    size: u64,
    number: usize,
}

impl Blocks {
    fn of(vm: &Running) -> Self {
        let hex = |file: &str| u64::from_str_radix(&sysfs(vm, &[file]), 16).unwrap();
        Self {
            first: hex("memory/memory0/phys_addr"),
            size: hex("memory/block_size_bytes"),
            number: views::blocks(&vm.guest("blocks")).len(),
        }
    }

    /// The block that an address is on; `None` in boot memory.
    fn at(&self, address: u64) -> Option<usize> {
        let block = usize::try_from(address.checked_sub(self.first)? / self.size).unwrap();
        (block < self.number).then_some(block)
    }
}

fn balloon(stats: &Stats, field: &str) -> u64 {
    stats.number(&format!("balloon.{field}"))
}

fn dma_moved(vm: &Running) -> u64 {
    views::vmstat(&vm.guest("vmstat"))["kernel_dma_moved"]
}

/// A guest with one of each device, whose disk is busy and whose programs check their memory.
fn start(home: &Home, cmdline: &str) -> Running {
    let disk = home.swap_image("disk", "16M").display().to_string();
    let cmdline = format!("memhp_default_state=online_kernel scratch=vda {cmdline}");
    let machine = "--cpus 2 --memory 128M --hotplug 256M --block-size 4M --balloon floor=64M";
    let mut options: Vec<&str> = machine.split(' ').collect();
    options.extend(["--disk", &disk, "--cmdline", &cmdline]);
    options.extend(["--program", "family chunks=4 children=4"]);
    let mut vm = home.start("drivers", &options);
    vm.wait_for_driver();
    vm.wait_for_answers();
    vm
}

/// The devices do what they are for: blocks come and go, pages as well, and the guest says how its memory is used.
fn assert_all_work(vm: &mut Running) {
    let later = |vm: &Running| views::vmstat(&vm.guest("vmstat"))["blocks_unplug_pass_more"];
    let before = later(vm);
    for total in [256 * MIB, 96 * MIB, 192 * MIB] {
        vm.resize_to(total);
        assert_eq!(
            later(vm),
            before,
            "each block leaves at the first look at it or at the second"
        );
        let stats = vm.wait_until("the size that was asked for", |stats| {
            stats.number("guest_bytes") == total
        });
        assert_eq!(stats.number("total_requested"), total);
    }
    vm.order("balloon", &["stats"]).success();
    assert!(balloon(&vm.stats(), "statistics.total_bytes") > 64 * MIB);
    wait_for_checks(vm);
    let stats = vm.stats();
    assert_eq!((stats.number("violations"), stats.number("guest_faults")), (0, 0));
    assert_eq!(balloon(&stats, "deflated_unasked_bytes"), 0);
    let disks = vm.guest("disks");
    assert!(disks.contains("vda ready"), "{disks}");
}

#[test]
fn a_block_of_the_kernels_leaves_with_the_memory_of_each_driver_on_it() {
    let home = Home::new();
    let mut vm = start(&home, "validate");
    vm.resize("192M");
    let (own, blocks) = (blocks_in(&vm, "Normal"), Blocks::of(&vm));
    let mut found = Vec::new();
    for (device, nr_areas) in DEVICES {
        assert_eq!(areas(&vm, device).len(), nr_areas, "{device}");
        // Where the kernel's memory is that can be moved, as long as there is room.
        let here = eventually("areas on blocks", || {
            let [_, now] = relocate(&vm, device);
            now.iter()
                .map(|&area| blocks.at(area))
                .collect::<Option<Vec<_>>>()
        });
        found.extend(here);
    }
    found.sort_unstable();
    found.dedup();
    assert!(found.iter().all(|block| own.contains(block)), "{found:?} {own:?}");
    wait_for_checks(&vm);

    // They go one by one, to boot memory in the end.
    let before = dma_moved(&vm);
    for &block in &own {
        make(&vm, block, "offline");
        for (device, _) in DEVICES {
            let mut here = areas(&vm, device).into_iter().map(|area| blocks.at(area));
            assert!(here.all(|at| at != Some(block)), "{device}");
        }
    }
    // Each driver at least once, with a frame at least.
    assert!(dma_moved(&vm) >= before + DEVICES.len() as u64);
    vm.resize("128M");
    assert_eq!(vm.stats().number("plugged_size"), 0);
    assert_all_work(&mut vm);
    vm.order("stop", &[]).success();
    vm.wait_for_end();
}

#[test]
fn suspect_frames_of_all_drivers_go_out_of_use_and_the_devices_go_on() {
    let home = Home::new();
    let mut vm = start(&home, "");
    for (device, nr_areas) in DEVICES {
        for piece in 0..nr_areas {
            let before = areas(&vm, device);
            let pfn = format!("{:#x}", before[piece] >> 12);
            let known = vm.guest(&format!("frame {pfn}"));
            assert!(known.contains("{dma}"), "{device}: {known}");
            let said = vm.order("guest", &["poison", &pfn, "soft"]).success();
            assert!(said.contains("out of use: moved"), "{device}: {said}");
            assert_ne!(areas(&vm, device)[piece], before[piece], "{device}");
        }
    }
    assert_eq!(views::vmstat(&vm.guest("vmstat"))["nr_poisoned"], 14);
    assert_all_work(&mut vm);
}

#[test]
fn the_balloon_keeps_its_pages_when_its_drivers_memory_moves_and_the_host_hears_of_them_again() {
    let home = Home::new();
    let mut vm = start(&home, "");
    vm.resize_to(96 * MIB);
    vm.wait_until("the driver's own word", |stats| {
        balloon(stats, "actual_bytes") == 32 * MIB
    });
    let moved = |vm: &Running| {
        let said = views::vmstat(&vm.guest("balloon"));
        [said["balloon_inflated_bytes"], said["balloon_deflated_bytes"]]
    };
    let inside = moved(&vm);
    // The host asks for statistics all the while, and gets them.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asker = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                vm.order("balloon", &["stats"]).success();
            }
        });
        for _ in 0..20 {
            relocate(&vm, "balloon");
        }
        assert!(!asker.is_finished());
        over.store(true, Ordering::Relaxed);
    });
    for _ in 0..3 {
        relocate(&vm, "balloon");
        vm.wait_until("all pages in the balloon", |stats| {
            balloon(stats, "held_bytes") == 32 * MIB && balloon(stats, "actual_bytes") == 32 * MIB
        });
        // None came out of it, and none went in that was not in it.
        assert_eq!(moved(&vm), inside);
        vm.order("balloon", &["stats"]).success();
        assert!(balloon(&vm.stats(), "statistics.total_bytes") < 96 * MIB);
    }
    vm.resize_to(128 * MIB);
    let stats = vm.wait_until("an empty balloon", |stats| balloon(stats, "held_bytes") == 0);
    assert_eq!(balloon(&stats, "deflated_unasked_bytes"), 0);
    let [inflated, deflated] = moved(&vm);
    assert_eq!(inflated, deflated);
    assert_all_work(&mut vm);
}

#[test]
fn what_is_said_on_the_console_arrives_whole_while_its_drivers_memory_leaves_blocks() {
    const ASKERS: usize = 2;
    let home = Home::new();
    let mut vm = start(&home, "");
    let help = vm.guest("help");
    assert!(
        help.len() > 2048,
        "more than a buffer for lines, and half of one for text"
    );
    let (before, blocks) = (dma_moved(&vm), Blocks::of(&vm));
    let (over, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let (vm, over, answers, help) = (&vm, &over, &answers, &help);
        let ask = move || {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(&vm.guest("help"), help);
                answers.fetch_add(1, Ordering::Relaxed);
            }
        };
        let askers = [(); ASKERS].map(|()| scope.spawn(ask));
        for _ in 0..8 {
            vm.resize("160M");
            eventually("memory of the console on a block", || {
                let [_, now] = relocate(vm, "console");
                now.iter().any(|&area| blocks.at(area).is_some()).then_some(())
            });
            let asked = answers.load(Ordering::Relaxed);
            // All blocks go, and the console's memory with them, between two answers or in the middle of one.
            vm.resize("128M");
            eventually("more answers", || {
                let has_failed = askers.iter().any(thread::ScopedJoinHandle::is_finished);
                (has_failed || answers.load(Ordering::Relaxed) > asked).then_some(())
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    // A frame by each shrink at least.
    assert!(dma_moved(&vm) >= before + 8);
    assert_all_work(&mut vm);
}
