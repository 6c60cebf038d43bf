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
fn programs_find_what_they_wrote_when_their_pages_are_laundered() {
    let home = Home::new();
    let path = home.files().join("swap").display().to_string();
    home.run(["disk", "swap", &path, "--size", "64M"]).success();
    let arguments = [
        "--cpus",
        "2",
        "--disk",
        &path,
        "--memory",
        "32M",
        "--cmdline",
        "swap=vda reclaim=launder",
        "--program",
        "pager size=24M pages=small seed=1",
        "--program",
        "pager size=16M pages=mixed seed=2",
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
    for name in ["pswpout", "pswpin", "pgmajfault", "pgscan"] {
        assert!(counts[name] > 0, "{name}: {counts:?}");
    }
    assert_eq!(counts["oom_kill"], 0, "{counts:?}");
    for program in vm.programs() {
        assert_eq!(program.checks_failed, 0, "{program:?}");
    }
}
