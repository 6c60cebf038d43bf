//! Page frames that an operator takes out of use because their memory fails: nobody notices while the contents can be saved, and only those end
//! who have lost something.

use integration_tests::{Home, Running, eventually, views};

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
    let address = vm.guest(&format!("sysfs memory/memory{block}/phys_addr"));
    let first = u64::from_str_radix(address.trim(), 16).unwrap() >> 12;
    let file = |name: &str| {
        vm.guest(&format!("sysfs memory/memory{block}/{name}"))
            .trim()
            .to_owned()
    };
    let (mut last, mut failed) = (String::new(), Vec::new());
    for pfn in first..first + 8 {
        if file("state") != "online" {
            break;
        }
        last = poison(&vm, &pfn.to_string(), "soft");
        failed.push(pfn);
    }
    assert!(last.contains("and is out of use"), "{last}");
    assert_eq!(
        (file("state").as_str(), file("poisoned_pages").as_str()),
        ("offline", "4")
    );
    // What has failed is not in use again when the block is.
    let state = format!("memory/memory{block}/state");
    vm.order("guest", &["sysfs", &state, "online"]).success();
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
    vm.order("guest", &["poison", "16", "hard"])
        .assert_refusal(1, &["is the kernel's own"]);
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
