//! The built-in guest with the reclaim of Linux 2.4: programs that use more than there is find what they wrote.

use integration_tests::views;
use integration_tests::{Home, eventually};

/// Pages on the lists of inactive clean ones, of all zones: `NODE ZONE LIST CHUNKS ...`.
fn clean_pages(lru: &str) -> Option<u64> {
    let words = lru.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let lists = words.filter(|words| words.get(2) == Some(&"inactive_clean"));
    lists.map(|words| words.get(3)?.parse::<u64>().ok()).sum()
}

#[test]
fn files_and_memory_are_whole_when_pages_of_both_are_laundered() {
    let home = Home::new();
    let swap = home.swap_image("swap", "64M").display().to_string();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    let arguments = [
        "--memory",
        "32M",
        "--disk",
        &root,
        "--disk",
        &swap,
        "--cmdline",
        "root=vda swap=vdb reclaim=launder validate",
        "--program",
        "/bin/files files=2 pages=1200 rounds=2",
        "--program",
        "pager size=24M rounds=2 seed=2",
    ];
    let mut vm = home.start("launder", &arguments);
    eventually("pages on the list of clean ones", || {
        let lru = home.run(["guest", "launder", "lru"]);
        (lru.status == 0 && clean_pages(&lru.stdout) > Some(0)).then_some(())
    });
    assert_eq!(vm.wait_for_end(), 0);
    let said = vm.serial.text();
    for line in [
        "2 rounds, 0 checks failed",
        "2 rounds, 24 MiB, 0 checks failed",
        "/bin/files[1]: exited(0)",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let checked = home.run(["disk", "check", &root]).success();
    assert!(checked.contains("whole:"), "{checked}");
}

#[test]
fn programs_find_what_they_wrote_when_their_pages_are_laundered() {
    let home = Home::new();
    let path = home.swap_image("swap", "64M").display().to_string();
    let arguments = [
        "--cpus",
        "2",
        "--disk",
        &path,
        "--memory",
        "32M",
        "--cmdline",
        "swap=vda reclaim=launder validate",
        "--program",
        "pager size=24M pages=small seed=1",
        "--program",
        "pager size=16M pages=mixed seed=2",
        // Written and read by calls alone: nobody maps its pages, and those of programs are found through their page tables.
        "--program",
        "files dir=/shm files=1 pages=512 nomap nosync",
    ];
    let mut vm = home.start("launder", &arguments);
    eventually("the guest's channel", || {
        (home.run(["guest", "launder", "ps"]).status == 0).then_some(())
    });
    vm.wait_for_checks(500);
    // Washed pages wait there for somebody who wants their frames; nothing else puts any on this list.
    eventually("pages on the list of clean ones", || {
        clean_pages(&vm.guest("lru")).filter(|pages| *pages > 0)
    });
    let counts = views::vmstat(&vm.guest("vmstat"));
    for name in ["pswpout", "pswpin", "pgmajfault", "pgscan", "shm_swap"] {
        assert!(counts[name] > 0, "{name}: {counts:?}");
    }
    assert_eq!(counts["oom_kill"], 0, "{counts:?}");
    for program in vm.programs() {
        assert_eq!(program.checks_failed, 0, "{program:?}");
    }
    vm.stop();
}
