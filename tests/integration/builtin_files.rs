//! The built-in guest's file system: programs loaded from it, files that are larger than memory, and a disk that loses its end. A VMM that is
//! killed: `builtin_kills`.

use std::fs::File;
use std::path::{Path, PathBuf};

use guest_programs::pattern::{Page, file_page};
use integration_tests::{Home, Running, eventually, views};

/// An image with the guest's programs in it.
pub(super) fn make_root(home: &Home, size: &str) -> PathBuf {
    let image = home.files().join("root.img");
    home.run([
        "disk",
        "make",
        image.to_str().unwrap(),
        "--size",
        size,
        "--programs",
    ])
    .success();
    image
}

/// Starts a guest on an image, with so much memory and these programs.
fn start(home: &Home, image: &Path, memory: &str, programs: &[&str]) -> Running {
    let disk = image.to_str().unwrap().to_owned();
    let line = "root=vda validate";
    let mut arguments = vec!["--memory", memory, "--disk", &disk, "--cmdline", line];
    for program in programs {
        arguments.extend(["--program", program]);
    }
    home.start("files", &arguments)
}

/// The pages of a file in an image.
pub(super) fn pages(home: &Home, image: &Path, path: &str) -> Vec<Page> {
    let cat = home
        .command(["disk", "cat", image.to_str().unwrap(), path])
        .output();
    let cat = cat.unwrap();
    assert!(
        cat.status.success(),
        "{path}: {}",
        String::from_utf8_lossy(&cat.stderr)
    );
    let bytes = cat.stdout;
    assert_eq!(bytes.len() % 4096, 0, "{path}");
    let word = |word: &[u8]| u64::from_le_bytes(word.try_into().unwrap());
    let page = |page: &[u8]| -> Page {
        let words: Vec<u64> = page.chunks(8).map(word).collect();
        words.try_into().unwrap()
    };
    bytes.chunks(4096).map(page).collect()
}

/// Which of the generations a page is of.
pub(super) fn generation_of(
    page: &Page,
    file: u64,
    index: usize,
    mut among: std::ops::RangeInclusive<u32>,
) -> Option<u32> {
    among.find(|generation| file_page(1, file, index as u64, *generation).check(page).is_ok())
}

pub(super) fn assert_whole(home: &Home, image: &Path) {
    let checked = home.run(["disk", "check", image.to_str().unwrap()]).success();
    assert!(checked.contains("whole:"), "{checked}");
}

#[test]
fn files_larger_than_memory_are_read_back_after_a_reboot_and_from_the_host() {
    let home = Home::new();
    let image = make_root(&home, "96M");
    // 40 MiB of files and 24 MiB of a program, in less memory than the files alone.
    let written = "/bin/files files=4 pages=2500 rounds=2";
    let mut vm = start(&home, &image, "48M", &[written, "/bin/hog size=8M rounds=20"]);
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    for said in [
        "mounted",
        "2 rounds, 0 checks failed",
        "/bin/files[1]: exited(0)",
        "/bin/hog[2]: exited(0)",
    ] {
        assert!(console.contains(said), "{said}: {console}");
    }
    assert_whole(&home, &image);
    for file in 0..4 {
        let found = pages(&home, &image, &format!("/files/file{file}"));
        assert_eq!(found.len(), 2500);
        for (index, page) in found.iter().enumerate() {
            assert_eq!(
                generation_of(page, file, index, 2..=2),
                Some(2),
                "file {file}, page {index}"
            );
        }
    }
    let checked = "/bin/files check files=4 pages=2500 rounds=1 generation=2";
    let mut vm = start(&home, &image, "48M", &[checked]);
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    assert!(console.contains("/bin/files[1]: exited(0)"), "{console}");
    assert_whole(&home, &image);
}

#[test]
fn what_nobody_synced_is_on_the_disk_when_it_is_old() {
    let home = Home::new();
    let image = make_root(&home, "16M");
    let disk = image.to_str().unwrap();
    // The second one only keeps the machine running.
    let mut vm = home.start(
        "files",
        &[
            "--memory",
            "48M",
            "--disk",
            disk,
            "--cmdline",
            "root=vda dirty_writeback_cs=20 dirty_expire_cs=100",
            "--program",
            "/bin/files files=2 pages=100 rounds=1 nosync nomap",
            "--program",
            "/bin/hog size=2M",
        ],
    );
    vm.serial.wait_for("1 rounds, 0 checks failed");
    eventually("nothing dirty, and nothing on its way", || {
        let counts = views::vmstat(&vm.guest("vmstat"));
        (counts["nr_dirty"] + counts["nr_writeback"] == 0).then_some(())
    });
    // What leads to the data is committed once more when that is there: before, its blocks count as unwritten, and read as zero.
    eventually("the commit", || {
        let checked = home.run(["disk", "check", disk]);
        let is_there = |file| {
            let found = home.command(["disk", "cat", disk, file]).output().unwrap();
            let mut pages = found.stdout.chunks(4096);
            found.stdout.len() == 100 * 4096 && pages.all(|page| page.iter().any(|byte| *byte != 0))
        };
        (checked.status == 0 && ["/files/file0", "/files/file1"].into_iter().all(is_there)).then_some(())
    });
    vm.kill_hard();
    assert_whole(&home, &image);
    for file in 0..2 {
        let pages = pages(&home, &image, &format!("/files/file{file}"));
        assert_eq!(pages.len(), 100);
        for (index, page) in pages.iter().enumerate() {
            assert_eq!(generation_of(page, file, index, 1..=1), Some(1), "{file} {index}");
        }
    }
}

#[test]
fn a_disk_that_loses_its_end_is_an_error_of_who_reads_there_and_of_nobody_else() {
    let home = Home::new();
    let image = make_root(&home, "64M");
    // Files are laid out one behind the other from an eighth of the disk on, the bad ones last; metadata is before them.
    let good = "/bin/files dir=/good files=1 pages=500 rounds=1 nosync";
    let mut vm = start(&home, &image, "64M", &[good]);
    assert_eq!(vm.wait_for_end(), 0);
    let bad = "/bin/files dir=/bad files=2 pages=4000 rounds=1 nosync";
    let mut vm = start(&home, &image, "64M", &[bad]);
    assert_eq!(vm.wait_for_end(), 0);
    assert_whole(&home, &image);
    let programs = [
        "/bin/files dir=/good check files=1 pages=500 rounds=40",
        "/bin/files dir=/bad check files=2 pages=4000",
        "/bin/files dir=/bad check noread files=2 pages=4000",
        "/bin/hog size=4M rounds=200",
    ];
    let mut vm = start(&home, &image, "40M", &programs);
    vm.serial.wait_for("mounted");
    let disk = File::options().write(true).open(&image).unwrap();
    disk.set_len(16 << 20).unwrap();
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    for said in [
        "/bin/files[1]: exited(0)",
        "read: Io",
        "/bin/files[2]: exited(3)",
        "could not be read from the disk",
        "/bin/files[3]: killed",
        "/bin/hog[4]: exited(0)",
    ] {
        assert!(console.contains(said), "{said}: {console}");
    }
}

#[test]
fn names_are_found_while_their_caches_give_memory_back() {
    let home = Home::new();
    let image = make_root(&home, "64M");
    // 48 MiB of files, written and read for ever.
    let programs = [
        "/bin/names count=300 rounds=1000000",
        "/bin/files files=3 pages=4000 nosync nomap",
    ];
    let mut vm = start(&home, &image, "40M", &programs);
    vm.serial.wait_for("round 0: 0 checks failed");
    // Whoever writes so much is made to wait, too.
    let counters = [
        "dentry_reclaimed",
        "inode_reclaimed",
        "dentry_hit",
        "inode_hit",
        "fs_page_released",
        "balance_dirty_pages",
    ];
    eventually("memory out of the caches of names and inodes", || {
        let numbers = views::vmstat(&vm.guest("vmstat"));
        counters.iter().all(|counter| numbers[*counter] > 0).then_some(())
    });
    // All of them once more after that.
    let round = || vm.serial.text().matches(": 0 checks failed").count();
    let before = round();
    eventually("names that are found again", || {
        (round() > before + 1).then_some(())
    });
    let programs = vm.programs();
    assert!(
        programs.iter().all(|program| program.checks_failed == 0),
        "{programs:?}"
    );
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    assert_whole(&home, &image);
}

#[test]
fn pages_of_files_leave_a_block_with_their_block_numbers_and_without_being_written() {
    let home = Home::new();
    let image = make_root(&home, "64M");
    let disk = image.to_str().unwrap().to_owned();
    let files = "/bin/files files=3 pages=3000 nosync";
    let arguments = [
        "--memory",
        "48M",
        "--hotplug",
        "64M",
        "--disk",
        &disk,
        "--cmdline",
        "root=vda migrate=remap",
        "--program",
        files,
    ];
    let mut vm = home.start("files", &arguments);
    vm.wait_for_driver();
    vm.resize_to(112 << 20);
    let number = |counter: &str| views::vmstat(&vm.guest("vmstat"))[counter];
    // The files fit, and are found in memory from the second round on.
    eventually("pages of files", || {
        (number("nr_file_pages") > 8000).then_some(())
    });
    // They are not the kernel's, and most of them are there for programs.
    let meminfo = views::meminfo(&vm.guest("meminfo"));
    assert!(
        meminfo["Cached"] > 32_000 && meminfo["KernelPages"] < 24_000,
        "{meminfo:?}"
    );
    assert!(
        meminfo["MemAvailable"] > meminfo["MemFree"] + 16_000,
        "{meminfo:?}"
    );
    // Files have their names.
    let maps = vm.guest("maps 1");
    let text = maps.lines().find(|line| line.contains(" r-xp ")).unwrap();
    assert!(text.ends_with(" /bin/files"), "{maps}");
    vm.resize_to(64 << 20);
    assert!(number("fs_page_migrated") > 0);
    let checked = || vm.programs()[0].checks_ok;
    let before = checked();
    eventually("more checks", || (checked() > before + 9000).then_some(()));
    assert_eq!(vm.programs()[0].checks_failed, 0);
    vm.order("stop", &[]).success();
    assert_eq!(vm.wait_for_end(), 0);
    assert_whole(&home, &image);
}

#[test]
fn a_disk_without_a_file_system_is_said_to_be_none() {
    let home = Home::new();
    let image = home.files().join("root.img");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let mut vm = start(
        &home,
        &image,
        "32M",
        &["/bin/hog rounds=1", "hog size=2M rounds=1"],
    );
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    for said in [
        "root=vda: no valid superblock: this is not a PageFS: `ballast disk make` makes one",
        "/bin/hog[1]: cannot be loaded: there is no file system (root=)",
        "hog[2]: exited(0)",
    ] {
        assert!(console.contains(said), "{said}: {console}");
    }
}

#[test]
fn direct_io_goes_past_the_page_cache_and_what_it_pins_stays_while_blocks_leave() {
    let home = Home::new();
    let image = make_root(&home, "32M");
    let mut vm = start(&home, &image, "64M", &["direct pages=1024 rounds=1"]);
    assert_eq!(vm.wait_for_end(), 0);
    let console = vm.serial.text();
    assert!(console.contains("1 rounds, 0 checks failed"), "{console}");
    assert_whole(&home, &image);
    // Stored through a mapping, written through the cache, written past it.
    for (index, page) in pages(&home, &image, "/direct").iter().enumerate() {
        let expected = [4, 5, 3][index % 3];
        assert_eq!(
            generation_of(page, 0, index, 1..=5),
            Some(expected),
            "page {index}"
        );
    }

    let disk = image.to_str().unwrap();
    let arguments = [
        "--memory",
        "64M",
        "--hotplug",
        "128M",
        "--cpus",
        "2",
        "--disk",
        disk,
        "--cmdline",
        "root=vda",
        "--program",
        "direct pages=1024",
    ];
    let mut vm = home.start("direct", &arguments);
    vm.wait_for_driver();
    for total in ["192M", "64M", "192M", "64M"] {
        vm.resize(total);
        vm.wait_for_checks(3000);
    }
    assert_eq!(vm.stats().number("plugged_size"), 0);
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert!(
        counts["direct_read_pages"] > 2048 && counts["direct_written_pages"] > 2048,
        "{counts:?}"
    );
    let programs = vm.programs();
    assert_eq!(
        (programs[0].checks_failed, programs[0].is_alive()),
        (0, true),
        "{programs:?}"
    );
}
