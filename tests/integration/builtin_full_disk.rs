//! The built-in guest with disks that take nothing any more, as their images have no room to grow on the host: who wrote is told, nobody waits for
//! ever, and the others go on with the right data.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::{Home, Running, eventually, views};

/// A file system of the host with so much room, until dropped.
struct SmallRoom(PathBuf);

impl SmallRoom {
    fn new(home: &Home, size: &str) -> Self {
        let path = home.files().join("small");
        std::fs::create_dir(&path).unwrap();
        let room = Self(path);
        room.mount(&format!("size={size}"));
        room
    }

    /// From now on it has this much.
    fn grow(&self, size: &str) {
        self.mount(&format!("remount,size={size}"));
    }

    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "ballast-test"])
            .arg(&self.0);
        let done = mount.output().expect("mount can be started");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "NOT TESTED: no tmpfs with {options}: {said}"
        );
    }
}

impl Drop for SmallRoom {
    fn drop(&mut self) {
        // A VMM that has not ended yet may have a file open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn start(home: &Home, image: &Path, memory: &str, cmdline: &str, programs: &[&str]) -> Running {
    let disk = image.to_str().unwrap().to_owned();
    let mut arguments = vec!["--memory", memory, "--disk", &disk, "--cmdline", cmdline];
    for program in programs {
        arguments.extend(["--program", program]);
    }
    home.start("full", &arguments)
}

fn assert_said(vm: &Running, what: &[&str]) {
    let console = vm.serial.text();
    for said in what {
        assert!(console.contains(said), "{said}: {console}");
    }
}

#[test]
fn who_writes_to_a_disk_that_takes_nothing_any_more_is_told_and_the_others_go_on() {
    let home = Home::new();
    let room = SmallRoom::new(&home, "10M");
    let image = room.0.join("root.img");
    let text = image.display().to_string();
    home.run(["disk", "make", &text, "--size", "96M", "--programs"])
        .success();
    let good = "/bin/files dir=/good files=2 pages=200 rounds=1";
    let mut vm = start(&home, &image, "48M", "root=vda", &[good]);
    assert_eq!(vm.wait_for_end(), 0);
    assert_said(&vm, &["/bin/files[1]: exited(0)"]);

    // Twice what may be dirty: whoever waited until all of it is written would wait for ever.
    let programs = [
        "/bin/files dir=/full files=1 pages=5000 rounds=1 nomap noread",
        "/bin/files dir=/mapped files=1 pages=3000 rounds=1 noread",
        "/bin/files dir=/good check files=2 pages=200 rounds=30",
        "/bin/hog size=4M rounds=60",
    ];
    let mut vm = start(&home, &image, "48M", "root=vda", &programs);
    vm.wait_until("the guest's channel", |_| {
        home.run(["guest", "full", "ps"]).status == 0
    });
    let lost = || views::vmstat(&vm.guest("vmstat"))["fs_page_lost"];
    eventually("pages that are given up", || (lost() > 0).then_some(()));
    assert_eq!(vm.wait_for_end(), 0);
    let said = vm.serial.text();
    assert!(said.contains("fsync: Io") && said.contains("msync: Io"), "{said}");
    assert_said(
        &vm,
        &[
            "/bin/files[1]: exited(3)",
            "/bin/files[2]: exited(3)",
            "/bin/files[3]: exited(0)",
            "/bin/hog[4]: exited(0)",
        ],
    );

    // With room again, what was whole is whole, and there is room for more.
    room.grow("128M");
    home.run(["disk", "check", &text]).success();
    let programs = [
        "/bin/files dir=/good check files=2 pages=200 rounds=1",
        "/bin/files dir=/full files=1 pages=5000 rounds=1 generation=9",
    ];
    let mut vm = start(&home, &image, "48M", "root=vda", &programs);
    assert_eq!(vm.wait_for_end(), 0);
    assert_said(&vm, &["/bin/files[1]: exited(0)", "/bin/files[2]: exited(0)"]);
}

#[test]
fn each_who_has_a_file_open_is_told_once_that_its_pages_are_lost() {
    let home = Home::new();
    let room = SmallRoom::new(&home, "8M");
    let image = room.0.join("root.img");
    let text = image.display().to_string();
    home.run(["disk", "make", &text, "--size", "32M", "--programs"])
        .success();
    // Metadata, which is in the first eighth, has its room on the host; half of the data does not.
    let disk = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let mut metadata = vec![0; 4 << 20];
    disk.read_exact_at(&mut metadata, 0).unwrap();
    disk.write_all_at(&metadata, 0).unwrap();
    let mut vm = start(&home, &image, "48M", "root=vda", &["/bin/told pages=1500"]);
    assert_eq!(vm.wait_for_end(), 0);
    assert_said(&vm, &["told: 0 checks failed", "/bin/told[1]: exited(0)"]);
}

#[test]
fn a_swap_disk_that_takes_nothing_any_more_ends_the_program_with_the_highest_score_and_no_other() {
    let home = Home::new();
    let room = SmallRoom::new(&home, "3M");
    let image = room.0.join("swap.img");
    let text = image.display().to_string();
    home.run(["disk", "swap", &text, "--size", "64M"]).success();
    let programs = [
        "pager size=40M pages=small seed=1 oom=500",
        "pager size=8M pages=small seed=2",
        "hog size=2M seed=3",
    ];
    let vm = start(&home, &image, "32M", "swap=vda", &programs);
    vm.serial.wait_for("pager[1]: killed");
    let checked = || {
        vm.programs()[1..]
            .iter()
            .map(|program| program.checks_ok)
            .sum::<u64>()
    };
    let before = checked();
    eventually("checks of the others", || {
        (checked() > before + 10_000).then_some(())
    });
    let programs = vm.programs();
    for program in &programs {
        assert_eq!(program.checks_failed, 0, "{programs:?}");
    }
    let counts = views::vmstat(&vm.guest("vmstat"));
    assert_eq!((counts["oom_kill"], counts["oom_no_victim"]), (1, 0));
    assert!(
        counts["pswpout"] > 0,
        "what the disk had room for is there: {counts:?}"
    );
    assert_said(&vm, &["vda: swap: a write of ", "program 1 is ended, score "]);
}
