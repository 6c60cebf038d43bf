//! A file system without a method of its own for pages that move (`rootflags=migrate=default`): what is dirty on a block that leaves is written
//! first, and everything moves without what the file system had on it, which is found again when somebody stores there.

use std::path::Path;

use guest_programs::pattern::file_page;
use integration_tests::{Home, views};

use crate::builtin_files::{assert_whole, pages};
use crate::builtin_kinds::{FROM, root, start, unplug_under};
use crate::held::{Held, KIND, Kind};

const CLEAN: Kind = Kind {
    name: "clean",
    flags: &["file", "uptodate"],
    without: &["dirty", "writeback"],
    ..KIND
};
const DIRTY: Kind = Kind {
    name: "dirty",
    flags: &["file", "uptodate", "dirty", "private"],
    without: &[],
    counter: "migrate_written_first",
    ..KIND
};

/// Those of its pages that have something of the file system's on them.
fn with_private(held: &Held<'_>) -> usize {
    held.frames()
        .iter()
        .filter(|frame| frame.has(&["private"]))
        .count()
}

#[test]
fn a_file_system_without_a_method_has_dirty_pages_written_before_they_move() {
    let home = Home::new();
    let root = root(&home);
    // Nothing gets so old that it is written for that.
    let cmdline = "root=vda rootflags=migrate=default migrate=remap dirty_expire_cs=60000 validate";
    let programs = [CLEAN, DIRTY].map(|kind| kind.program(FROM));
    let mut vm = start(&home, &[&root], cmdline, &programs);
    let held = [&CLEAN, &DIRTY].map(|kind| Held::by(&vm, kind));
    let [clean, dirty] = &held;
    vm.order("guest", &["sysfs", "memory/migrate_rate_mib", "64"])
        .success();

    let before = with_private(clean);
    unplug_under(&vm, clean, 256);
    let after = with_private(clean);
    assert!(after + 256 <= before, "{before} with private data, then {after}");

    let on_blocks = dirty.blocks_with(256);
    let counts = || views::vmstat(&vm.guest("vmstat"));
    let before = counts();
    unplug_under(&vm, dirty, 256);
    let after = counts();
    // What is dirty at the first look at a block leaves at the second.
    assert!(after["blocks_unplug_pass2"] > 0, "{after:?}");
    assert_eq!(after["blocks_unplug_pass_more"], 0, "{after:?}");
    let [first, written] = ["migrate_written_first", "pgpgout"].map(|name| after[name] - before[name]);
    // Each of them, and some again that were stored to while they were on their way.
    let least: u64 = on_blocks.values().sum();
    assert!(
        first >= least && written >= first,
        "{first} first, {written} in all, of {on_blocks:?}"
    );
    assert_eq!(after["fs_page_migrated"], 0, "{after:?}");
    vm.wait_for_checks(1000);

    // With the VMM what is in memory alone is gone: what was written is what moved.
    vm.kill_hard();
    assert_whole(&home, Path::new(&root));
    let seed = DIRTY.name.len() as u64;
    let found = pages(&home, Path::new(&root), "/dirty");
    let as_synced = |index: usize| file_page(seed, 0, index as u64, 0);
    let newer = (0..found.len()).filter(|&index| as_synced(index).check(&found[index]).is_err());
    let newer = newer.count() as u64;
    assert!(newer >= least, "{newer} of {least} pages are on the disk");
}

#[test]
fn a_flag_that_the_file_system_does_not_know_is_named_and_nothing_is_mounted() {
    let home = Home::new();
    let root = root(&home);
    let line = "root=vda rootflags=migrate=default,noatime";
    let arguments = ["--memory", "32M", "--disk", &root, "--cmdline", line];
    let programs = [
        "--program",
        "/bin/hog rounds=1",
        "--program",
        "hog size=2M rounds=1",
    ];
    let mut vm = home.start("flags", &[&arguments[..], &programs].concat());
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    for said in [
        "root=vda: rootflags: noatime is not one of migrate=data, migrate=default",
        "/bin/hog[1]: cannot be loaded: there is no file system (root=)",
        "hog[2]: exited(0)",
    ] {
        assert!(console.contains(said), "{said}: {console}");
    }
}
