//! Physical memory in the booted guest: for each mechanism a stress program on every CPU, with one CPU and two and on one
//! node and two, and its counters looked at from outside.

mod frames;
mod mappings;
mod nodes;
mod objects;
mod views;

use integration_tests::views::Numbers;
use integration_tests::views::physical::{self, ZoneInfo};
use integration_tests::{Home, Running};

/// How a guest is made, with one CPU or two, and one node or two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) cpus: u32,
    pub(crate) nodes: u32,
}

/// Every shape.
const SHAPES: [Shape; 4] = [
    Shape { cpus: 1, nodes: 1 },
    Shape { cpus: 2, nodes: 1 },
    Shape { cpus: 1, nodes: 2 },
    Shape { cpus: 2, nodes: 2 },
];

impl Shape {
    /// Options of `ballast run`: 160 MiB, on two nodes 96 of node 0 and 64 of node 1; a region of node 1's or the only
    /// one's.
    fn options(self) -> Vec<String> {
        let mut options = vec!["--cpus".to_owned(), self.cpus.to_string()];
        let rest = if self.nodes == 1 {
            ["--memory", "160M", "--hotplug", "64M"].as_slice()
        } else {
            &[
                "--node",
                "memory=96M,cpus=0,distance=10:25",
                "--node",
                if self.cpus == 1 {
                    "memory=64M,cpus=none"
                } else {
                    "memory=64M,cpus=1"
                },
                "--hotplug",
                "64M,node=1",
            ]
        };
        options.extend(rest.iter().map(|option| (*option).to_owned()));
        options
    }
}

/// A guest with a stress program on each CPU.
pub(crate) struct Stressed {
    pub(crate) shape: Shape,
    pub(crate) vm: Running,
}

impl Stressed {
    /// Starts a guest of that shape, with more options, in which each CPU runs `stress row=ROW OPTIONS`.
    fn start(home: &Home, shape: Shape, (row, options): (&str, &str), more: &[&str]) -> Self {
        let mut arguments = shape.options();
        arguments.extend(more.iter().map(|option| (*option).to_owned()));
        for cpu in 0..shape.cpus {
            arguments.extend([
                "--program".to_owned(),
                format!("stress row={row} seed={} {options}", cpu + 1),
            ]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let vm = home.start("stressed", &arguments);
        Self { shape, vm }
    }

    /// A guest that has done so many rounds on each CPU, and keeps what they hold. Every check went well.
    pub(crate) fn after(home: &Home, shape: Shape, row: &str, rounds: u32) -> Self {
        Self::with(home, shape, (row, rounds), &[])
    }

    /// The same with more options to `ballast run`.
    pub(crate) fn with(home: &Home, shape: Shape, (row, rounds): (&str, u32), more: &[&str]) -> Self {
        let stressed = Self::start(home, shape, (row, &format!("rounds={rounds} stay")), more);
        let mut position = 0;
        for _ in 0..shape.cpus {
            let done = format!("row {row}: {rounds} rounds, ");
            position = stressed.vm.serial.wait_for_after(position, &done).1;
        }
        stressed.assert_all_went_well();
        stressed
    }

    /// A guest whose programs go on and on.
    pub(crate) fn going_on(home: &Home, shape: Shape, row: &str) -> Self {
        let mut stressed = Self::start(home, shape, (row, ""), &[]);
        stressed.vm.wait_for_driver();
        stressed
    }

    /// Every program has checked something, none found anything wrong, and each CPU has one of them.
    pub(crate) fn assert_all_went_well(&self) {
        let programs = self.vm.programs();
        let serial = || self.vm.serial.text();
        assert_eq!(programs.len(), self.shape.cpus as usize, "{programs:?}");
        for program in &programs {
            assert_eq!(program.checks_failed, 0, "{program:?}\n{}", serial());
            assert!(
                program.checks_ok > 0 && program.is_alive(),
                "{program:?}\n{}",
                serial()
            );
        }
    }

    /// The zones that have memory, by `zoneinfo`.
    pub(crate) fn zones(&self) -> Vec<ZoneInfo> {
        let mut zones = physical::zoneinfo(&self.vm.guest("zoneinfo"));
        zones.retain(|zone| zone.number("present") > 0);
        zones
    }

    /// The counters, by `vmstat`.
    pub(crate) fn vmstat(&self) -> Numbers {
        integration_tests::views::vmstat(&self.vm.guest("vmstat"))
    }
}

/// Calls `check` with a guest of each shape that has done so many rounds of a row.
pub(crate) fn in_every_shape(row: &str, rounds: u32, check: impl Fn(&Stressed)) {
    for shape in SHAPES {
        let home = Home::new();
        check(&Stressed::after(&home, shape, row, rounds));
    }
}
