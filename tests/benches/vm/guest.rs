//! The same in the booted guest: programs measure by the guest's clock and say what came of it; disks are files of the host, in its page
//! cache.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use integration_tests::{Home, Running, eventually};

use crate::figure::{Effort, Figure};

/// Most boots for a row.
const BOOTS: usize = 5;
/// Pages of the file that is read: 32 MiB.
const FILE_PAGES: u64 = 8192;
/// Pages of the file that is read once: 100 MiB.
const LONG_FILE_PAGES: u64 = 25_600;
/// What a program's message looks like behind its name: `bench[1]: `.
const MARK: &str = "]: ";

/// What several rows are made of, measured once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// A disk by itself.
    Raw,
    /// Faults, one page each.
    Faults,
    /// Files in memory enough.
    Files,
    /// Memory that leaves at its program's word, and is read again.
    Swap,
    /// Memory that is filled, and read again, on a machine of that much.
    Fill(&'static str),
    /// A workload, by the scheme of that name.
    Workload(&'static str, &'static str),
}

/// What was measured: the name of a figure, and nanoseconds or pages, once for each time that it was said.
#[derive(Default, Debug)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    /// The figure of that name.
    ///
    /// # Errors
    /// Nobody has said it.
    pub(crate) fn of(&self, name: &str) -> Result<Figure, String> {
        let values = self.0.iter().filter(|(known, _)| known == name);
        let values: Vec<f64> = values.map(|(_, value)| *value).collect();
        if values.is_empty() {
            return Err(format!("no figure {name:?} from the guest: {:?}", self.0));
        }
        Ok(Figure::of(values))
    }
}

/// A machine for guests.
pub(crate) struct Guests {
    home: Home,
    image: PathBuf,
    swap: PathBuf,
    raw: PathBuf,
}

impl Guests {
    /// Makes the disks.
    ///
    /// # Errors
    /// There is no `/dev/kvm`, or no room.
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        fs::metadata("/dev/kvm").map_err(|error| format!("/dev/kvm: {error}"))?;
        let home = Home::new();
        let [tree, image, swap, raw] =
            ["tree", "root.img", "swap.img", "raw.img"].map(|name| home.files().join(name));
        fs::create_dir(&tree)?;
        for (name, pages) in [("data", FILE_PAGES), ("long", LONG_FILE_PAGES)] {
            let words =
                (0..pages * 512).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            fs::write(tree.join(name), words.collect::<Vec<u8>>())?;
        }
        let text = |path: &PathBuf| path.display().to_string();
        let make = [
            "disk",
            "make",
            &text(&image),
            "--size",
            "208M",
            "--from",
            &text(&tree),
        ];
        home.run(make).success();
        home.run(["disk", "swap", &text(&swap), "--size", "192M"])
            .success();
        // All of it is there: holes of a file are not what is measured.
        fs::write(&raw, vec![1; 64 << 20])?;
        Ok(Self {
            home,
            image,
            swap,
            raw,
        })
    }

    /// Measures a part.
    pub(crate) fn measure(&self, part: Part, effort: Effort) -> Figures {
        // An odd number, so that the median is not the slower one of two.
        let boots = (effort.rounds.div_ceil(4) | 1).min(BOOTS);
        let mut figures = Figures::default();
        for _ in 0..boots {
            let mut vm = self.start(part);
            if part == Part::Raw {
                // What ends by itself would end before the disk has been measured.
                eventually("the disk's rate", || {
                    vm.serial.text().contains("raw rate").then_some(())
                });
                vm.order("stop", &[]).success();
            }
            assert_eq!(vm.wait_for_end(), 0);
            let said = vm.serial.text();
            assert!(part == Part::Raw || said.contains("exited(0)"), "{said}");
            said.lines().for_each(|line| figures.note(line));
        }
        figures
    }

    fn start(&self, part: Part) -> Running {
        let text = |path: &PathBuf| path.display().to_string();
        let (image, swap, raw) = (text(&self.image), text(&self.swap), text(&self.raw));
        let (memory, disks, line, program) = match part {
            Part::Raw => (
                "64M",
                vec![raw],
                "raw_rate=vda".into(),
                "pager size=2M stay rounds=1".into(),
            ),
            Part::Faults => (
                "128M",
                vec![image, swap],
                "root=vda swap=vdb fault_around_kib=4".into(),
                "bench work=faults pages=2048 file=/long".into(),
            ),
            Part::Files => (
                "192M",
                vec![image],
                "root=vda".into(),
                format!("bench work=files pages={FILE_PAGES}"),
            ),
            Part::Swap => (
                "128M",
                vec![swap],
                "swap=vda".into(),
                "bench work=swap size=16M".into(),
            ),
            Part::Fill(memory) => (
                memory,
                vec![swap],
                "swap=vda".into(),
                "bench work=fill size=112M".into(),
            ),
            Part::Workload(work, scheme) => {
                let rest = match work {
                    "reading" => format!("size=16M file=/long pages={LONG_FILE_PAGES}"),
                    "mixed" => format!("size=64M file=/data pages={FILE_PAGES}"),
                    "mapped" => format!("file=/long pages={LONG_FILE_PAGES}"),
                    _ => "size=112M".into(),
                };
                // The file is twice as large as what of this memory the guest has left for it.
                let memory = if work == "mapped" { "64M" } else { "80M" };
                (
                    memory,
                    vec![swap, image],
                    format!("swap=vda root=vdb reclaim={scheme}"),
                    format!("bench work={work} {rest}"),
                )
            }
        };
        let mut arguments = vec!["--memory", memory, "--cmdline", &line, "--program", &program];
        disks.iter().for_each(|disk| arguments.extend(["--disk", disk]));
        self.home.start("bench", &arguments)
    }
}

impl Figures {
    /// What a line of the console says, if it is a figure: `NAME: N in T ns`, `NAME, pages: N what, ...`, or a disk's raw rate.
    fn note(&mut self, line: &str) {
        let Some((_, said)) = line.split_once(MARK).or_else(|| line.split_once("] ")) else {
            return;
        };
        let number = |text: &str| text.split(' ').find_map(|word| word.parse::<f64>().ok());
        if let Some((name, counts)) = said.split_once(", pages: ") {
            let values: Vec<f64> = counts.split(", ").filter_map(number).collect();
            if let [read, swapped_out, scanned, freed] = values[..] {
                self.0.push((format!("{name}, read"), read));
                self.0.push((format!("{name}, swapped out"), swapped_out));
                self.0
                    .push((format!("{name}, scanned"), scanned / freed.max(1.0)));
            }
        } else if let Some((_, rate)) = said.split_once("raw rate: ") {
            let parts: Vec<f64> = rate
                .split([' ', ','])
                .filter_map(|word| word.parse().ok())
                .collect();
            if let [pages, written, read, 0.0] = parts[..] {
                self.0.push(("raw write".into(), written / pages));
                self.0.push(("raw read".into(), read / pages));
            }
        } else if let Some((name, rest)) = said.split_once(": ")
            && let Some((count, ns)) = rest.split_once(" in ")
            && let (Ok(count), Some(ns)) = (count.parse::<f64>(), number(ns))
            && count > 0.0
        {
            self.0.push((name.into(), ns / count));
        }
    }
}
