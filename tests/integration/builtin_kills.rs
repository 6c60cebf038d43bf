//! The VMM killed at any moment while the built-in guest works on files with less memory than they take: the image is whole, what was synced is there,
//! what was not is nobody else's, and the next boot goes on with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use guest_programs::pattern::{Random, WORDS, file_page};
use integration_tests::{Home, Running};

use super::builtin_files::{assert_whole, generation_of, make_root, pages};

/// Files that are synced after each writing, and their pages.
const SYNCED: (u64, u64) = (3, 300);
/// Files that nobody syncs, more than fits in memory.
const UNSYNCED: (u64, u64) = (2, 4000);
/// More rounds than these can be written before a kill.
const MOST_ROUNDS: u32 = 100;
/// The longest that a guest works before the kill.
const LONGEST: Duration = Duration::from_millis(1200);

/// What happens to one boot, all of it decided by the seed but for what the host makes of the time.
#[derive(Debug)]
struct Kill {
    after: Duration,
    /// Counted from the start of the process; otherwise from when the file system is mounted.
    early: bool,
    cpus: &'static str,
    memory: &'static str,
    swaps: bool,
}

impl Kill {
    fn choose(random: &mut Random) -> Self {
        let early = random.below(6) == 0;
        let most = if early { LONGEST / 12 } else { LONGEST };
        let micros = u64::try_from(most.as_micros()).unwrap();
        Self {
            after: Duration::from_micros(random.below(micros)),
            early,
            cpus: ["1", "2"][usize::from(random.below(2) == 1)],
            memory: ["36M", "48M"][usize::from(random.below(2) == 1)],
            swaps: random.below(2) == 1,
        }
    }
}

/// An image that has survived so far.
struct Survivor<'a> {
    home: &'a Home,
    image: &'a Path,
    swap: &'a Path,
    /// Of each synced file, a generation that it has at least.
    synced: BTreeMap<u64, u32>,
    /// The generation that the next boot begins with.
    next: u32,
}

impl Survivor<'_> {
    fn start(&self, kill: &Kill, programs: &[&str]) -> Running {
        let (image, swap) = (self.image.to_str().unwrap(), self.swap.to_str().unwrap());
        let mut arguments = vec!["--cpus", kill.cpus, "--memory", kill.memory, "--disk", image];
        // Old pages go to the disk by themselves, too.
        let cmdline = "root=vda dirty_writeback_cs=10 dirty_expire_cs=30";
        let with_swap = format!("{cmdline} swap=vdb");
        if kill.swaps {
            arguments.extend(["--disk", swap, "--cmdline", &with_swap]);
            arguments.extend(["--program", "pager size=24M pages=small"]);
        } else {
            arguments.extend(["--cmdline", cmdline]);
        }
        for program in programs {
            arguments.extend(["--program", program]);
        }
        self.home.start("killed", &arguments)
    }

    /// Boots, kills, and looks.
    fn survive(&mut self, kill: &Kill) {
        let first = self.next;
        let synced = format!(
            "/bin/files files={} pages={} generation={first}",
            SYNCED.0, SYNCED.1
        );
        let unsynced = format!(
            "/bin/files dir=/unsynced files={} pages={} seed=2 nosync nomap",
            UNSYNCED.0, UNSYNCED.1
        );
        let names = "/bin/names count=30 rounds=1 times=1000000";
        let mut vm = self.start(kill, &[&synced, &unsynced, names]);
        if !kill.early {
            vm.serial.wait_for("mounted");
        }
        thread::sleep(kill.after);
        vm.kill_hard();
        let console = vm.serial.text();
        for bad in [
            "exited(1",
            "exited(2",
            "exited(3",
            "killed",
            "panicked",
            "out of memory",
            ": Io",
        ] {
            assert!(!console.contains(bad), "{bad}: {console}");
        }
        assert_eq!(
            console.matches("checks failed").count(),
            console.matches(" 0 checks failed").count(),
            "{console}"
        );
        assert_whole(self.home, self.image);
        let said = synced_in(&console);
        // What it said may come after what it did: the next round, and that of the next may have begun.
        let last = said.values().copied().max().unwrap_or(first) + 2;
        self.synced.extend(said);
        self.look_at_synced(last);
        self.look_at_unsynced();
        self.look_at_names();
        self.next = last + 1;
    }

    fn look_at_synced(&self, last: u32) {
        for (file, least) in &self.synced {
            let found = pages(self.home, self.image, &format!("/files/file{file}"));
            assert_eq!(found.len() as u64, SYNCED.1);
            for (index, page) in found.iter().enumerate() {
                let of = generation_of(page, *file, index, *least..=last);
                assert!(
                    of.is_some(),
                    "file {file}, page {index}: none of the generations {least} to {last}"
                );
            }
        }
    }

    /// Each page is the file's own, of any round, or was never written.
    fn look_at_unsynced(&self) {
        for file in self.files_in("/unsynced").into_keys() {
            let number: u64 = file.strip_prefix("file").unwrap().parse().unwrap();
            let found = pages(self.home, self.image, &format!("/unsynced/{file}"));
            for (index, page) in found.iter().enumerate() {
                let is_own = |generation| file_page(2, number, index as u64, generation).check(page).is_ok();
                assert!(
                    *page == [0; WORDS] || (1..=MOST_ROUNDS).any(is_own),
                    "/unsynced/{file}, page {index}: {:x?}",
                    &page[..4]
                );
            }
        }
    }

    /// Each file has what was written to it, as far as that has arrived.
    fn look_at_names(&self) {
        for (name, size) in self.files_in("/names") {
            let whole = match name.strip_prefix('n') {
                Some(number) => number.parse::<u64>().unwrap().to_le_bytes().to_vec(),
                None => b"parent, child, parent.".to_vec(),
            };
            let path = format!("/names/{name}");
            let image = self.image.to_str().unwrap();
            let cat = self.home.command(["disk", "cat", image, &path]).output().unwrap();
            assert!(cat.status.success());
            assert_eq!(cat.stdout.len() as u64, size);
            let written = whole
                .iter()
                .zip(&cat.stdout)
                .take_while(|(one, other)| one == other)
                .count();
            // What has not arrived when the size is committed is a hole.
            assert!(
                size <= whole.len() as u64 && cat.stdout[written..].iter().all(|byte| *byte == 0),
                "{path}: {:?}",
                cat.stdout
            );
        }
    }

    /// The files of a directory with their sizes; none if it is not there yet.
    fn files_in(&self, directory: &str) -> BTreeMap<String, u64> {
        let image = self.image.to_str().unwrap();
        let listed = self.home.run(["disk", "list", image, directory, "--json"]);
        if listed.status != 0 {
            assert!(
                !self
                    .home
                    .run(["disk", "list", image])
                    .success()
                    .contains(&directory[1..])
            );
            return BTreeMap::new();
        }
        let entries: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        let entry = |entry: &serde_json::Value| {
            let name = entry["name"].as_str().unwrap().to_owned();
            (name, entry["size"].as_u64().unwrap())
        };
        entries.as_array().unwrap().iter().map(entry).collect()
    }

    /// After all that, everything works.
    fn finish(&self) {
        let files = format!(
            "/bin/files files={} pages={} rounds=1 generation={}",
            SYNCED.0, SYNCED.1, self.next
        );
        let calm = Kill {
            after: Duration::ZERO,
            early: false,
            cpus: "1",
            memory: "48M",
            swaps: false,
        };
        let mut vm = self.start(&calm, &[&files, "/bin/names count=30 rounds=1"]);
        assert_eq!(vm.wait_for_end(), 0);
        let console = vm.serial.text();
        for said in ["/bin/files[1]: exited(0)", "/bin/names[2]: exited(0)"] {
            assert!(console.contains(said), "{said}: {console}");
        }
        assert_whole(self.home, self.image);
    }
}

/// The last generation of each file that the guest said was on the disk. A line that the kill has cut off says nothing.
fn synced_in(console: &str) -> BTreeMap<u64, u32> {
    let whole = console.rfind('\n').map_or("", |end| &console[..end]);
    let lines = whole.lines().filter_map(|line| line.split_once("synced "));
    let pairs = lines.filter_map(|(_, rest)| {
        let (file, generation) = rest.trim().split_once(' ')?;
        Some((file.parse().ok()?, generation.parse().ok()?))
    });
    pairs.collect()
}

fn kill_often(kills: u64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = std::env::var("BALLAST_TEST_KILL_SEED").map_or(u64::from(now.subsec_nanos()), |seed| {
        seed.parse().expect("BALLAST_TEST_KILL_SEED is a number")
    });
    println!("BALLAST_TEST_KILL_SEED={seed}");
    let mut random = Random::new(seed);
    let home = Home::new();
    let image = make_root(&home, "64M");
    let swap = home.swap_image("swap.img", "48M");
    let mut survivor = Survivor {
        home: &home,
        image: &image,
        swap: &swap,
        synced: BTreeMap::new(),
        next: 1,
    };
    // Kills may all come before the first file is synced: then there are more of them.
    for number in 0..4 * kills {
        if number >= kills && !survivor.synced.is_empty() {
            break;
        }
        let kill = Kill::choose(&mut random);
        println!("kill {number}: {kill:?}, synced {:?}", survivor.synced);
        survivor.survive(&kill);
    }
    survivor.finish();
    assert!(!survivor.synced.is_empty(), "nothing was synced before a kill");
}

#[test]
fn whenever_the_vmm_is_killed_the_image_is_whole_and_what_was_synced_is_there() {
    kill_often(5);
}

/// `BALLAST_TEST_KILLS=100 cargo nextest run -p integration-tests --run-ignored only many_kills`
#[test]
#[ignore = "kills the VMM as often as the environment asks for"]
fn many_kills_of_the_vmm_lose_nothing_that_was_synced() {
    let kills = std::env::var("BALLAST_TEST_KILLS").map_or(30, |kills| kills.parse().unwrap());
    kill_often(kills);
}
