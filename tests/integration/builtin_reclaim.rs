//! Which pages the built-in guest takes from whom when memory is short, and how hard it tries when there is nothing to take.

use integration_tests::{Home, Running, eventually, views};

fn counts(vm: &Running) -> views::Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

fn wait_for_channel(home: &Home, vm: &mut Running) {
    let name = vm.name().to_owned();
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", &name, "ps"]).status == 0
    });
}

/// Swapped pages that came back meanwhile.
const TURNOVER: u64 = 4000;

/// Pages of files that are read from the disk while memory goes round, and a file of `pages` pages is read again and again.
fn read_again(scheme: &str, pages: u64) -> u64 {
    let home = Home::new();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "16M", "--programs"])
        .success();
    let write = format!("/bin/files files=1 pages={pages} rounds=1 nomap");
    let arguments = ["--memory", "48M", "--disk", &root, "--cmdline", "root=vda"];
    let mut vm = home.start("first", &[&arguments[..], &["--program", &write]].concat());
    assert_eq!(vm.wait_for_end(), 0);
    assert!(vm.serial.text().contains("exited(0)"));

    let swap = home.swap_image("swap", "64M").display().to_string();
    let mut vm = home.start(
        "second",
        &[
            "--memory",
            "32M",
            "--cpus",
            "2",
            "--disk",
            &root,
            "--disk",
            &swap,
            "--cmdline",
            &format!("root=vda swap=vdb reclaim={scheme}"),
            "--program",
            &format!("/bin/files check files=1 pages={pages} nomap"),
            "--program",
            "pager size=32M seed=2",
        ],
    );
    wait_for_channel(&home, &mut vm);
    eventually("memory that is full", || {
        (counts(&vm)["pswpin"] > 4000).then_some(())
    });
    let before = counts(&vm);
    let after = eventually("memory going round", || {
        let now = counts(&vm);
        (now["pswpin"] > before["pswpin"] + TURNOVER).then_some(now)
    });
    for program in vm.programs() {
        assert!(program.checks_failed == 0 && program.is_alive(), "{program:?}");
    }
    after["pgpgin"] - before["pgpgin"]
}

#[test]
fn pages_of_a_file_that_is_read_again_and_again_stay_under_either_scheme() {
    // No entry maps them: only the calls tell that they are in use.
    for (scheme, pages) in [("two-list", 256), ("launder", 512)] {
        let read = read_again(scheme, pages);
        assert!(read < pages / 4, "{scheme}: {read} pages were read from the disk");
    }
}
