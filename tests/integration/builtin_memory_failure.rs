//! Page frames that an operator takes out of use because their memory fails: nobody notices while the contents can be saved, and only those end
//! who have lost something.

use integration_tests::{Home, Outcome, Running, eventually, views};

use super::builtin_files::{assert_whole, make_root};
use super::builtin_kernel_memory::{blocks_in, dma, wait_for_checks};
use super::builtin_kinds::{self, FROM};

use crate::builtin_kinds::{IN_MEMORY, OF_FILES, root};
use crate::held::{Held, Kind};

/// The frames that a program has in the first pages of an area, as the guest says; those that are there.
fn frames(vm: &Running, pid: u64, area: &str, pages: u32) -> Vec<String> {
    let maps = vm.guest(&format!("maps {pid}"));
    let line = maps.lines().find(|line| line.contains(area)).expect("the area");
    let start = line.split('-').next().unwrap();
    let listed = vm.guest(&format!("pagemap {pid} 0x{start} {pages}"));
    let mut lines = listed.lines();
    assert_eq!(
        lines.next(),
        Some("ADDRESS PFN STATE HEAD COUNT MAPCOUNT NODE BLOCK FLAGS")
    );
    lines
        .filter(|line| line.contains(" allocated "))
        .filter_map(|line| Some(line.split(' ').nth(1)?.to_owned()))
        .collect()
}

fn count(vm: &Running, name: &str) -> u64 {
    views::vmstat(&vm.guest("vmstat"))[name]
}

fn poison(vm: &Running, pfn: &str, severity: &str) -> String {
    vm.order("guest", &["poison", pfn, severity]).success()
}

/// Takes the frames of a block out of use, one after the other, until all of it is; what was said last, and which they were.
fn poison_until_offline(vm: &Running, block: usize) -> (String, Vec<u64>) {
    let file = |name: &str| vm.guest(&format!("sysfs memory/memory{block}/{name}"));
    let first = u64::from_str_radix(file("phys_addr").trim(), 16).unwrap() >> 12;
    let (mut last, mut failed) = (String::new(), Vec::new());
    for pfn in first..first + 8 {
        if file("state").trim() != "online" {
            break;
        }
        last = poison(vm, &pfn.to_string(), "soft");
        failed.push(pfn);
    }
    (last, failed)
}

#[test]
fn suspect_frames_go_out_of_use_under_a_program_and_a_block_with_many_of_them_goes_whole() {
    let home = Home::new();
    let options = ["--memory", "48M", "--hotplug", "128M", "--cmdline", "validate"];
    let mut vm = home.start("soft", &[&options[..], &["--program", "pager size=24M"]].concat());
    vm.wait_for_driver();
    vm.resize("112M");
    vm.wait_for_checks(20);
    let pid = vm.programs()[0].pid;
    // The program's memory is the area that is larger than the others.
    let suspects = frames(&vm, pid, &largest_area(&vm, pid), 64);
    assert!(suspects.len() >= 20, "{suspects:?}");
    for pfn in &suspects[..16] {
        let said = poison(&vm, pfn, "soft");
        assert!(said.contains("out of use: moved"), "{said}");
    }
    vm.order("guest", &["poison", &suspects[0]])
        .assert_refusal(1, &["out of use already"]);
    assert_eq!((count(&vm, "nr_poisoned"), count(&vm, "poison_kill")), (16, 0));
    assert_eq!(views::meminfo(&vm.guest("meminfo"))["HardwareCorrupted"], 64);
    let frame = vm.guest(&format!("frame {}", suspects[0]));
    assert!(frame.contains(" poisoned "), "{frame}");
    vm.wait_for_checks(20);

    // More in one block than it may have.
    vm.order("guest", &["sysfs", "memory/poison_limit", "3"])
        .success();
    let block = eventually("a block that is used", || {
        let blocks = views::blocks(&vm.guest("blocks"));
        blocks.iter().position(|block| block.used_pages > 100)
    });
    let file = |name: &str| {
        vm.guest(&format!("sysfs memory/memory{block}/{name}"))
            .trim()
            .to_owned()
    };
    let (last, failed) = poison_until_offline(&vm, block);
    assert!(last.contains("and is out of use"), "{last}");
    assert_eq!(
        (file("state").as_str(), file("poisoned_pages").as_str()),
        ("offline", "4")
    );
    // It does not come back as long as it has more than it may have.
    let state = format!("memory/memory{block}/state");
    let ask = || vm.order("guest", &["sysfs", &state, "online"]);
    let refusal = format!("block {block} has 4 failed frames, more than the 3 of memory/poison_limit");
    ask().assert_refusal(1, &[&refusal]);
    vm.order("guest", &["sysfs", "node/node0/state", "online"])
        .assert_refusal(1, &[&refusal]);
    assert_eq!(file("state"), "offline");
    vm.order("guest", &["sysfs", "memory/poison_limit", "4"])
        .success();
    ask().success();
    assert_eq!(file("state"), "online");
    // What has failed is not in use again when the block is.
    assert_eq!(file("poisoned_pages"), "4");
    for pfn in failed {
        let frame = vm.guest(&format!("frame {pfn}"));
        assert!(frame.contains(" poisoned "), "{frame}");
    }
    vm.wait_for_checks(20);
    let poisoned = count(&vm, "nr_poisoned");
    vm.resize("64M");
    assert!(
        count(&vm, "nr_poisoned") < poisoned,
        "what is unplugged is not the guest's to mistrust"
    );
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
}

#[test]
fn a_frame_that_fails_ends_the_programs_that_had_its_page_and_no_other() {
    let home = Home::new();
    let options = ["--memory", "96M", "--hotplug", "64M", "--cmdline", "validate"];
    let programs = [
        "--program",
        "pager size=8M seed=1",
        "--program",
        "pager size=8M seed=2",
    ];
    let mut vm = home.start("hard", &[&options[..], &programs].concat());
    vm.wait_for_driver();
    vm.wait_for_checks(20);
    let [victim, other] = std::array::from_fn(|index| vm.programs()[index].pid);
    let failed = frames(&vm, victim, &largest_area(&vm, victim), 32)[5].clone();
    let said = poison(&vm, &failed, "hard");
    assert!(
        said.contains("out of use: lost") && said.contains(&format!("program {victim} ")),
        "{said}"
    );
    eventually("the end of the one who lost it", || {
        let programs = vm.programs();
        let of = |pid| programs.iter().find(|program| program.pid == pid);
        of(victim).is_none_or(|program| !program.is_alive()).then_some(())
    });
    assert_eq!((count(&vm, "nr_poisoned"), count(&vm, "poison_kill")), (1, 1));
    let left = || {
        vm.programs()
            .into_iter()
            .find(|program| program.pid == other)
            .unwrap()
    };
    let before = left().checks_ok;
    eventually("the other one to go on", || {
        let left = left();
        assert!(left.checks_failed == 0 && left.is_alive(), "{left:?}");
        (left.checks_ok > before + 10_000).then_some(())
    });
    // What the kernel cannot do without.
    let refused = vm.order("guest", &["poison", "16", "hard"]);
    refused.assert_refusal(1, &["is the kernel's own"]);
    assert_ends_with_its_reason(&refused);
    vm.order("guest", &["poison", "0x40000000"])
        .assert_refusal(1, &["no memory is online at"]);
    vm.order("guest", &["poison", "x"])
        .assert_refusal(1, &["x is not the number of a page frame"]);
    vm.order("guest", &["poison", "1", "rather"])
        .assert_refusal(1, &["rather is not soft or hard"]);
}

/// Takes a page of that kind away from the program that has it. What was said, and the program.
fn fail_under<'a>(vm: &'a Running, kind: &'a Kind) -> (String, Held<'a>) {
    let held = Held::by(vm, kind);
    let pfn = eventually(kind.name, || {
        let frames = held.frames();
        frames
            .iter()
            .find(|frame| kind.is_one(frame))
            .map(|frame| frame.pfn)
    });
    (poison(vm, &pfn.to_string(), "hard"), held)
}

#[test]
fn a_frame_that_fails_under_what_is_on_a_disk_too_ends_nobody_and_under_a_dirty_page_its_users() {
    let home = Home::new();
    let root = root(&home);
    let swap = home.swap_image("swap", "32M").display().to_string();
    let [clean, dirty] =
        ["clean", "dirty"].map(|name| OF_FILES.iter().find(|kind| kind.name == name).unwrap());
    let swapped = IN_MEMORY.iter().find(|kind| kind.name == "swapped").unwrap();
    let programs = [swapped, clean, dirty].map(|kind| kind.program("1M"));
    let cmdline = "root=vda swap=vdb dirty_expire_cs=60000 validate";
    let mut arguments = vec![
        "--memory",
        "96M",
        "--disk",
        &root,
        "--disk",
        &swap,
        "--cmdline",
        cmdline,
    ];
    programs
        .iter()
        .for_each(|program| arguments.extend(["--program", program]));
    let vm = home.start("disks", &arguments);
    vm.wait_for_answers();
    let saved = [clean, swapped].map(|kind| {
        let (said, held) = fail_under(&vm, kind);
        assert!(
            said.contains("out of use: dropped") && !said.contains("is ended"),
            "{said}"
        );
        held
    });
    saved.iter().for_each(Held::wait_for_checks);
    assert_eq!((count(&vm, "nr_poisoned"), count(&vm, "poison_kill")), (2, 0));
    let (said, held) = fail_under(&vm, dirty);
    let whose = format!("program {} ", held.pid);
    assert!(
        said.contains("out of use: lost") && said.contains(&whose),
        "{said}"
    );
    eventually("the end of the one who lost it", || {
        let programs = vm.programs();
        let found = programs.iter().find(|program| program.pid == held.pid);
        found.is_none_or(|program| !program.is_alive()).then_some(())
    });
    saved.iter().for_each(Held::wait_for_checks);
    assert_eq!((count(&vm, "nr_poisoned"), count(&vm, "poison_kill")), (3, 1));
}

/// The first line of `maps` of what takes the most addresses.
fn largest_area(vm: &Running, pid: u64) -> String {
    let maps = vm.guest(&format!("maps {pid}"));
    let bytes = |line: &&str| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
    };
    maps.lines().max_by_key(bytes).expect("an area").to_owned()
}

/// Nothing follows the reason of a refusal when nobody has lost anything.
fn assert_ends_with_its_reason(refused: &Outcome) {
    assert!(!refused.stderr.trim_end().ends_with(';'), "{refused:?}");
}

/// A frame that a program has a page of its kind in.
fn one_of(held: &Held<'_>) -> String {
    eventually(held.kind.name, || {
        let frames = held.frames();
        let found = frames.iter().find(|frame| held.kind.is_one(frame))?;
        Some(format!("{:#x}", found.pfn))
    })
}

/// The frame under a page is about to fail: the page is in another one, and its program finds it as it was.
fn fail_softly(vm: &Running, held: &Held<'_>) {
    let name = held.kind.name;
    held.wait_for_checks();
    // What the program has stored to or written since may have left its frame alone.
    let pfn = eventually(name, || {
        let pfn = one_of(held);
        let said = poison(vm, &pfn, "soft");
        println!("{name}: {said}");
        said.contains("out of use: moved").then_some(pfn)
    });
    let known = vm.guest(&format!("frame {pfn}"));
    assert!(known.contains(" poisoned "), "{name}: {known}");
    let is_it = |frame: &views::pagemap::Frame| format!("{:#x}", frame.pfn) == pfn;
    assert!(!held.frames().iter().any(is_it), "{name} is still in {pfn}");
    held.wait_for_checks();
}

/// The frame under a page has failed: the page is lost, or is on a disk. Whether its program was ended for it.
fn fail_hard(vm: &Running, held: &Held<'_>, becomes: &str) -> bool {
    let name = held.kind.name;
    held.wait_for_checks();
    let said = poison(vm, &one_of(held), "hard");
    println!("{name}: {said}");
    assert!(said.contains(&format!("out of use: {becomes}")), "{name}: {said}");
    let is_lost = becomes == "lost";
    assert_eq!(said.contains("has lost a page"), is_lost, "{name}: {said}");
    assert_eq!(
        said.contains(&format!("program {} ", held.pid)),
        is_lost,
        "{name}: {said}"
    );
    is_lost
}

/// What becomes of a page of each kind when its frame has failed: what is on a disk too is not lost.
const HARD: [(&str, &str); 11] = [
    ("anonymous", "lost"),
    ("swapped", "dropped"),
    ("forked", "lost"),
    ("shmem", "lost"),
    ("locked", "lost"),
    ("huge", "lost"),
    ("reserved", "lost"),
    ("nonlinear", "lost"),
    ("clean", "dropped"),
    ("hole", "dropped"),
    ("dirty", "lost"),
];

#[test]
fn pages_of_every_kind_leave_a_suspect_frame_and_of_a_failed_one_only_those_are_lost_that_are_nowhere_else() {
    let home = Home::new();
    let root = builtin_kinds::root(&home);
    let swap = home.swap_image("swap", "32M").display().to_string();
    let kinds = IN_MEMORY.iter().chain(&OF_FILES);
    let programs: Vec<String> = kinds.clone().map(|kind| kind.program(FROM)).collect();
    let cmdline = "root=vda swap=vdb dirty_expire_cs=6000 validate";
    let vm = builtin_kinds::start(&home, &[&root, &swap], cmdline, &programs);
    vm.order("guest", &["hugepages", "2"]).success();
    vm.order("guest", &["sysfs", "memory/poison_limit", "1000"])
        .success();
    let held: Vec<Held<'_>> = kinds.map(|kind| Held::by(&vm, kind)).collect();
    for held in &held {
        fail_softly(&vm, held);
    }
    assert!(count(&vm, "nr_poisoned") >= held.len() as u64);
    assert_eq!(count(&vm, "poison_kill"), 0);

    let mut survivors: Vec<&Held<'_>> = held.iter().collect();
    for (name, becomes) in HARD {
        let at = survivors.iter().position(|held| held.kind.name == name);
        let at = at.expect("a program that holds that kind");
        if !fail_hard(&vm, survivors[at], becomes) {
            continue;
        }
        let ended = survivors.remove(at);
        eventually("the end of the one who lost it", || {
            let programs = vm.programs();
            let mut of = programs.iter().filter(|program| program.pid == ended.pid);
            of.all(|program| !program.is_alive()).then_some(())
        });
    }
    // The program that was forked has a page less, too.
    assert_eq!(count(&vm, "poison_kill"), 9);
    assert_eq!(survivors.len(), 4, "those whose pages are on a disk");
    for held in survivors {
        held.wait_for_checks();
    }
}

/// The frames on blocks that are the kernel's own, and of that kind.
fn kernel_frames(vm: &Running, kind: &str) -> Vec<String> {
    let block_size = vm.guest("sysfs memory/block_size_bytes");
    let nr_frames = u64::from_str_radix(block_size.trim(), 16).unwrap() >> 12;
    let mut found = Vec::new();
    for block in blocks_in(vm, "Normal") {
        let address = vm.guest(&format!("sysfs memory/memory{block}/phys_addr"));
        let first = u64::from_str_radix(address.trim(), 16).unwrap() >> 12;
        for from in (first..first + nr_frames).step_by(512) {
            let frames = vm.guest(&format!("frame {from} 512"));
            let of_kind = frames
                .lines()
                .filter(|line| line.contains(" allocated ") && line.contains(kind));
            found.extend(of_kind.map(|line| line.split(' ').next().unwrap().to_owned()));
        }
    }
    found
}

/// Frames of a kind are about to fail, and some of them, at least, are not just in use: their owners move what is in them.
fn fail_kernel_frames(vm: &Running, kind: &str, counter: &str) {
    const ENOUGH: u64 = 3;
    let before = count(vm, counter);
    let mut moved = Vec::new();
    eventually(kind, || {
        for pfn in kernel_frames(vm, kind) {
            let outcome = vm.order("guest", &["poison", &pfn, "soft"]);
            println!("{kind}: {outcome:?}");
            if outcome.status != 0 {
                outcome.assert_refusal(1, &[&pfn]);
                assert_ends_with_its_reason(&outcome);
            } else if outcome.stdout.contains("out of use: moved") {
                moved.push(pfn);
            }
            // What was freed already, and only waited for its address to be forgotten, is not counted as moved.
            if count(vm, counter) >= before + ENOUGH {
                return Some(());
            }
        }
        None
    });
    for pfn in moved {
        assert!(vm.guest(&format!("frame {pfn}")).contains(" poisoned "));
    }
    wait_for_checks(vm);
}

#[test]
fn suspect_frames_of_the_kernels_own_go_out_of_use_once_their_owners_have_moved_what_is_in_them() {
    let home = Home::new();
    let image = make_root(&home, "64M");
    let disk = image.display().to_string();
    // The manager's own load does not stand still while it is validated.
    let cmdline = "root=vda load=vmalloc memhp_default_state=online_kernel";
    let machine = "--cpus 2 --memory 128M --hotplug 256M --block-size 4M";
    let mut options: Vec<&str> = machine.split(' ').collect();
    options.extend(["--disk", &disk, "--cmdline", cmdline]);
    for program in [
        "family chunks=4 children=4",
        "/bin/names count=3000 rounds=2 times=100000",
        "/bin/files files=2 pages=300",
    ] {
        options.extend(["--program", program]);
    }
    let mut vm = home.start("kernel", &options);
    vm.wait_for_driver();
    vm.resize("192M");
    vm.order("guest", &["sysfs", "memory/poison_limit", "1000"])
        .success();
    for (kind, counter) in [
        ("{table", "kernel_tables_moved"),
        ("{vmalloc", "kernel_vmalloc_moved"),
        ("{slab", "kernel_slabs_moved"),
    ] {
        fail_kernel_frames(&vm, kind, counter);
    }

    // A disk's driver has two pieces of memory, and starts again with others.
    for piece in 0..2 {
        let before = dma(&vm);
        let pfn = format!("{:#x}", before[piece] >> 12);
        let known = vm.guest(&format!("frame {pfn}"));
        assert!(known.contains("{dma}"), "{known}");
        let refused = vm.order("guest", &["poison", &pfn, "hard"]);
        refused.assert_refusal(1, &[&pfn, "is memory of a device driver"]);
        assert_ends_with_its_reason(&refused);
        let said = poison(&vm, &pfn, "soft");
        assert!(said.contains("out of use: moved"), "{said}");
        assert_ne!(dma(&vm)[piece], before[piece]);
        wait_for_checks(&vm);
    }
    assert!(count(&vm, "kernel_dma_moved") > 0);
    assert_eq!(count(&vm, "poison_kill"), 0);
    assert!(count(&vm, "load_vmalloc_pages_checked") > 0);
    assert_eq!(count(&vm, "load_vmalloc_pages_wrong"), 0);
    vm.order("stop", &[]).success();
    vm.wait_for_end();
    assert_whole(&home, &image);
}
