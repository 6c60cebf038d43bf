//! Disks with a limit of their rate, down to one that does nothing at all for hours: who needs such a disk waits, and nobody else does.

use std::collections::BTreeMap;

use integration_tests::{Home, Running, eventually, views};

/// One request, and the next one in a week.
const STANDS_STILL: &str = r#"{"ops": {"size": 1, "refill_time": 604800000}}"#;
/// As fast as it can.
const UNLIMITED: &str =
    r#"{"ops": {"size": 0, "refill_time": 0}, "bandwidth": {"size": 0, "refill_time": 0}}"#;
/// A program that needs no disk, whatever the others do: it runs on memory that stays.
const BYSTANDER: &str = "pager size=2M lock=2M oom=-1000 seed=9";

/// A guest on one CPU with these disks and programs.
fn boot(home: &Home, disks: &[&str], memory: &str, cmdline: &str, programs: &[&str]) -> Running {
    let mut arguments = vec!["--cpus", "1", "--memory", memory, "--cmdline", cmdline];
    for disk in disks {
        arguments.extend(["--disk", disk]);
    }
    for program in programs {
        arguments.extend(["--program", program]);
    }
    home.start("slow", &arguments)
}

/// The same, once it answers questions.
fn start(home: &Home, disks: &[&str], memory: &str, cmdline: &str, programs: &[&str]) -> Running {
    let mut vm = boot(home, disks, memory, cmdline, programs);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "slow", "ps"]).status == 0
    });
    vm
}

/// A file system with so many files of so many pages in `/read`.
fn make_root(home: &Home, files: u32, pages: u32) -> String {
    let image = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &image, "--size", "128M"]).success();
    let written = format!("files dir=/read files={files} pages={pages} rounds=1 nomap noread");
    let mut vm = boot(home, &[&image], "64M", "root=vda", &[&written]);
    assert_eq!(vm.wait_for_end(), 0);
    image
}

/// How many requests of a disk have ended, and how many had to wait for its limit.
fn requests(vm: &Running, disk: usize) -> (u64, u64) {
    let stats = vm.stats();
    let of = |field: &str| stats.number(&format!("disks.{disk}.{field}"));
    (of("reads") + of("writes") + of("flushes"), of("throttled"))
}

/// How far each program has come: checks of its data, and faults.
fn progress(vm: &Running) -> BTreeMap<u64, u64> {
    let programs = vm.programs();
    for program in &programs {
        assert_eq!(program.checks_failed, 0, "{program:?}");
    }
    programs
        .iter()
        .map(|it| (it.pid, it.checks_ok + it.faults))
        .collect()
}

fn assert_whole(home: &Home, image: &str) {
    let checked = home.run(["disk", "check", image]).success();
    assert!(checked.contains("whole:"), "{checked}");
}

#[test]
fn programs_run_on_while_others_wait_for_disks_that_do_nothing() {
    let home = Home::new();
    let root = make_root(&home, 1, 8000);
    let swap = home.swap_image("swap.img", "64M").display().to_string();
    // Reads, faults on mapped pages, waits for what it has written, and has its memory in the swap area: each in less memory than it uses.
    let programs = [
        "files dir=/read check files=1 pages=8000 nomap",
        "files dir=/read check files=1 pages=8000 noread",
        "files dir=/written files=1 pages=50 noread nomap",
        "pager size=28M pages=small",
        BYSTANDER,
    ];
    let bystander = programs.len() as u64;
    let mut vm = start(&home, &[&root, &swap], "32M", "root=vda swap=vdb", &programs);
    // The one that only writes has nothing to check.
    vm.serial.wait_for("synced 0 2");
    let waits_for_disks = |pid: &u64| *pid != bystander;
    eventually("everybody at work", || {
        progress(&vm)
            .iter()
            .all(|(pid, far)| *pid == 3 || *far > 100)
            .then_some(())
    });

    for disk in [0, 1] {
        vm.limit_disk(disk, STANDS_STILL);
    }
    // With what was under way when it began to stand still, they may get a little further.
    let (before, stood) = eventually("somebody who runs while all others wait", || {
        let (earlier, done) = (progress(&vm), [0, 1].map(|disk| requests(&vm, disk)));
        eventually("checks of who needs no disk", || {
            (progress(&vm)[&bystander] > earlier[&bystander] + 2000).then_some(())
        });
        let now = progress(&vm);
        let same = earlier
            .iter()
            .filter(|(pid, _)| waits_for_disks(pid))
            .all(|(pid, ok)| now[pid] == *ok);
        let stood = [0, 1].map(|disk| requests(&vm, disk)) == done;
        let states = vm.programs();
        let wait = states
            .iter()
            .filter(|it| waits_for_disks(&it.pid))
            .all(|it| it.state == "waiting");
        (same && stood && wait).then_some((now, done))
    });
    for (_, throttled) in stood {
        assert!(throttled > 0, "{stood:?}");
    }
    let synced = vm.serial.text().matches("synced ").count();
    eventually("more checks of who needs no disk", || {
        (progress(&vm)[&bystander] > before[&bystander] + 5000).then_some(())
    });
    assert_eq!([0, 1].map(|disk| requests(&vm, disk)), stood);
    assert_eq!(vm.serial.text().matches("synced ").count(), synced);

    // Nothing is lost: with disks that work again, all go on.
    for disk in [0, 1] {
        vm.limit_disk(disk, UNLIMITED);
    }
    eventually("everybody at work again", || {
        let now = progress(&vm);
        let go_on = before.iter().all(|(pid, far)| *pid == 3 || now[pid] > far + 100);
        (go_on && vm.serial.text().matches("synced ").count() > synced).then_some(())
    });
    assert_eq!(views::vmstat(&vm.guest("vmstat"))["oom_kill"], 0);
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    assert_whole(&home, &root);
}

#[test]
fn who_has_to_end_does_not_wait_for_a_disk_that_does_nothing() {
    let home = Home::new();
    let root = make_root(&home, 1, 8000);
    // Of those that must go, each is in the middle of a file that is larger than memory. The one behind them forks, and finds no memory.
    let programs = [
        "files dir=/read check files=1 pages=8000 nomap oom=1000",
        "files dir=/read check files=1 pages=8000 noread oom=1000",
        "family chunks=2 children=3",
        BYSTANDER,
    ];
    let vm = start(&home, &[&root], "48M", "root=vda", &programs);
    let reads = || vm.stats().number("disks.0.reads");
    let begun = reads();
    eventually("everybody at the disk", || (reads() > begun + 20).then_some(()));
    vm.limit_disk(0, STANDS_STILL);
    let waits = |pid: usize| vm.programs()[pid - 1].state == "waiting";
    let stood = eventually("two who wait", || {
        let before = requests(&vm, 0);
        let bystander = progress(&vm)[&4];
        eventually("checks of who needs no disk", || {
            (progress(&vm)[&4] > bystander + 1000).then_some(())
        });
        (requests(&vm, 0) == before && (1..=2).all(waits)).then_some(before)
    });
    // What is free becomes reserved huge pages, again and again, until nothing is left for a fork.
    eventually("the end of both", || {
        vm.order("guest", &["hugepages", "20"]).success();
        let console = vm.serial.text();
        (1..=2)
            .all(|pid| console.contains(&format!("files[{pid}]: killed")))
            .then_some(())
    });
    assert_eq!(requests(&vm, 0), stood, "the disk has not done anything for it");
    assert!(views::vmstat(&vm.guest("vmstat"))["oom_kill"] >= 2);
    let bystander = progress(&vm)[&4];
    eventually("checks of the one that has to stay", || {
        (progress(&vm)[&4] > bystander + 1000).then_some(())
    });
}
