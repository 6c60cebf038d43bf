//! What must be readable on the screen, on terminals of several sizes.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::demo::plan::{Move, Pair, Plan};
use crate::demo::scene::Line;
use crate::demo::view::{BlockState, BlockView, Counters, Program};

/// A scene in the middle of the first move. In A, blocks 0 to 95 were plugged long ago, of which 90 to 95 are leaving,
/// and 96 and 97 have just left; in B, 32 blocks are old, one has just come and one is coming.
fn scene() -> Scene {
    let plan = Plan::new(6).expect("six are enough");
    let mut scene = Scene::new(&plan, Instant::now());
    let what = Move {
        from: Side::A,
        bytes: 256 * MIB,
    };
    scene.phase = Phase::Moving {
        number: 1,
        what,
        step: Step::Shrink,
    };
    show_blocks(&mut scene);
    for side in Side::BOTH {
        let guest = &mut scene.guests[side];
        guest.pid = Some(4321);
        guest.programs = vec![
            program("hog fill=70% pages=huge", 0),
            program("hog size=48M pages=small", u64::from(side == Side::B)),
        ];
        guest.counters = Counters {
            pages_migrated: 34_816,
            huge_pages_migrated: 12,
            ..Counters::default()
        };
    }
    scene.guests.a.total = 896 * MIB;
    scene.sampled(Pair {
        a: 700 * MIB,
        b: 400 * MIB,
    });
    scene.sampled(Pair {
        a: 600 * MIB,
        b: 300 * MIB,
    });
    for number in 0..40 {
        scene.log.push(Line {
            at: Duration::from_millis(number * 100),
            tone: Tone::Note,
            text: format!("event {number}"),
        });
    }
    scene.start = Instant::now()
        .checked_sub(Duration::from_secs(10))
        .expect("the clock is older");
    scene
}

/// Both block maps as [`scene`] describes them.
fn show_blocks(scene: &mut Scene) {
    let view = |state, used_pages| BlockView {
        state,
        used_pages,
        free_pages: 2048 - used_pages,
    };
    let old: Vec<BlockView> = (0..128)
        .map(|index| match index {
            0..80 => view(BlockState::Online, 2048),
            80..85 => view(BlockState::Online, 1500),
            85..90 => view(BlockState::Online, 0),
            90..94 => view(BlockState::GoingOffline, 900),
            94..96 => view(BlockState::Offline, 0),
            _ => view(BlockState::Unplugged, 0),
        })
        .collect();
    let all_online = vec![view(BlockState::Online, 2048); 128];
    let a = &mut scene.guests.a.blocks;
    a.observe(Duration::ZERO, |index| index < 98, &all_online);
    a.observe(Duration::from_millis(9500), |index| index < 96, &old);
    let b = &mut scene.guests.b.blocks;
    b.observe(Duration::ZERO, |index| index < 32, &all_online);
    let coming: Vec<BlockView> = (0..128)
        .map(|index| {
            view(
                if index == 33 {
                    BlockState::Plugging
                } else {
                    BlockState::Online
                },
                100,
            )
        })
        .collect();
    b.observe(Duration::from_millis(9500), |index| index < 33, &coming);
}

fn program(command: &str, checks_failed: u64) -> Program {
    Program {
        pid: 1,
        command: command.into(),
        state: "running".into(),
        rss_kib: 300 << 10,
        checks_ok: 123_456,
        checks_failed,
        faults: 7,
    }
}

fn drawn(width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer never fails");
    terminal
        .draw(|frame| draw(frame, &scene(), Theme::Monochrome))
        .expect("a buffer never fails");
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>())
        .collect()
}

#[test]
fn eighty_by_twenty_four_shows_everything() {
    let rows = drawn(80, 24);
    let expected = [
        " ballast demo   move 1/6: A → B 256 MiB, A gives blocks up",
        " host ",
        "┌ A: 896 of 1152 MiB ────────",
        "│████████████████████████████████      ││▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒      │",
        "│████████████████████████████████      ││◆+······························      │",
        "│████████████████▓▓▓▓▓░░░░░»»»»--      ││································      │",
        "│◇◇······························      ││································      │",
    ];
    for (row, start) in rows.iter().zip(expected) {
        assert!(row.starts_with(start), "{row:?} should start with {start:?}");
    }
    assert!(rows[0].ends_with("10.0 s "), "{:?}", rows[0]);
    assert!(rows[1].ends_with(" 900 of 1328 MiB, peak 1100 "), "{:?}", rows[1]);
    let text = rows.join("\n");
    for part in [
        "600 MiB resident",
        "34k pages (12 huge)",
        "hog fill=70% pages=huge",
        "123k ok 0 bad",
        "123k ok 1 bad",
        "· host",
        "gone",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(rows[23].contains("event 39"), "{:?}", rows[23]);
}

#[test]
fn a_large_terminal_gets_larger_cells_and_a_longer_log() {
    let rows = drawn(160, 45);
    assert!(rows[3].starts_with("│███ ███ "), "{:?}", rows[3]);
    assert!(
        rows[8].starts_with("│▓▓▓ ▓▓▓ ▓▓▓ ▓▓▓ ▓▓▓ ░░░ ░░░"),
        "{:?}",
        rows[8]
    );
    assert!(rows[9].starts_with("│◇◇◇ ◇◇◇ ··· "), "{:?}", rows[9]);
    assert_eq!(rows.iter().filter(|row| row.contains("event ")).count(), 45 - 18);
}

#[test]
fn no_size_of_terminal_makes_drawing_fail() {
    for width in [1, 2, 3, 7, 19, 40, 79, 81, 133, 250] {
        for height in [1, 2, 5, 11, 23, 25, 60] {
            assert_eq!(drawn(width, height).len(), usize::from(height));
        }
    }
}

#[test]
fn the_legend_fits_the_smallest_terminal() {
    assert!(legend(Theme::Colour).width() <= usize::from(SMALLEST.0));
}

#[test]
fn a_bar_is_rounded_and_never_longer_than_its_room() {
    assert_eq!(share(1, 3, 30), 10);
    assert_eq!(share(5, 3, 30), 30);
    assert_eq!(share(u64::MAX, u64::MAX, 80), 80);
    assert_eq!(share(1, 0, 80), 0);
}

#[test]
fn counts_stay_short() {
    assert_eq!(panel::short(9999), "9999");
    assert_eq!(panel::short(10_000), "10k");
    assert_eq!(panel::short(123_456_789), "123M");
    assert_eq!(panel::short(u64::MAX), "18E");
}
