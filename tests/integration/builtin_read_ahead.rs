//! How many requests the built-in guest's disks get for what its programs read: pages come before anybody asks for them.

use integration_tests::{Home, Running, eventually, views};

/// Pages of the file that is read.
const PAGES: u64 = 2000;

/// Requests for reading that a disk has had: a column of the guest's table.
fn reads(vm: &Running, disk: &str) -> u64 {
    let table = vm.guest("disks");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(' ').collect()).collect();
    let column = rows[0].iter().position(|name| *name == "READS").unwrap();
    let row = rows.iter().find(|row| row[0] == disk);
    row.unwrap_or_else(|| panic!("no disk {disk}: {table}"))[column]
        .parse()
        .unwrap()
}

fn counts(vm: &Running) -> views::Numbers {
    views::vmstat(&vm.guest("vmstat"))
}

/// A guest with a file system on `root`, a program, and one that keeps the machine running.
fn start(home: &Home, root: &str, program: &str) -> Running {
    let arguments = [
        "--memory",
        "64M",
        "--disk",
        root,
        "--cmdline",
        "root=vda",
        "--program",
        program,
        "--program",
        "hog size=2M",
    ];
    let vm = home.start("ahead", &arguments);
    vm.serial.wait_for("1 rounds, 0 checks failed");
    vm
}

#[test]
fn a_file_that_is_read_or_mapped_comes_in_requests_of_many_pages() {
    let home = Home::new();
    let root = home.files().join("root.img").display().to_string();
    home.run(["disk", "make", &root, "--size", "32M", "--programs"])
        .success();
    {
        let vm = start(
            &home,
            &root,
            "/bin/files files=1 pages=2000 rounds=1 nomap noread",
        );
        vm.order("stop", &[]).success();
    }
    {
        // From the first page to the last: windows that grow.
        let vm = start(&home, &root, "/bin/files check files=1 pages=2000 rounds=1 nomap");
        let (read, requests) = (counts(&vm)["pgpgin"], reads(&vm, "vda"));
        assert!(read >= PAGES, "{read} pages were read");
        assert!(
            requests < PAGES / 8,
            "{requests} requests for {read} pages of files"
        );
    }
    // In no order, through a mapping: a few around each.
    let vm = start(
        &home,
        &root,
        "/bin/files check files=1 pages=2000 rounds=1 noread",
    );
    let (counts, requests) = (counts(&vm), reads(&vm, "vda"));
    assert!(counts["pgpgin"] >= PAGES / 2, "{counts:?}");
    assert!(
        requests < PAGES / 3 && counts["pgmajfault"] < PAGES / 3,
        "{requests} requests, {counts:?}"
    );
}

#[test]
fn pages_come_back_from_the_swap_area_in_requests_of_many() {
    let home = Home::new();
    let swap = home.swap_image("swap", "64M").display().to_string();
    let arguments = [
        "--memory",
        "32M",
        "--disk",
        &swap,
        "--cmdline",
        "swap=vda",
        "--program",
        "pager size=36M seed=1",
    ];
    let mut vm = home.start("ahead", &arguments);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "ahead", "ps"]).status == 0
    });
    let (counts, requests) = eventually("swapped pages that come back", || {
        // Those that are under way are counted when they have arrived.
        let requests = reads(&vm, "vda");
        let counts = counts(&vm);
        (counts["pswpin"] > 10_000).then_some((counts, requests))
    });
    assert!(
        requests * 4 < counts["pswpin"] && counts["pgmajfault"] * 4 < counts["pswpin"],
        "{requests} requests, {counts:?}"
    );
    assert_eq!(vm.programs()[0].checks_failed, 0);
}
