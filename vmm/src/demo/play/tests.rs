//! What the demo concludes from what the guests say.

use super::*;

fn program(state: &str, rss_mib: u64, checks_ok: u64) -> Program {
    Program {
        state: state.into(),
        rss_kib: rss_mib << 10,
        checks_ok,
        ..Program::default()
    }
}

#[test]
fn most_is_in_use_only_when_all_programs_live_verify_and_hold_it() {
    let of = |a: Program, b: Program| most_in_use(&[a, b], 1000 * MIB);
    assert!(of(program("running", 652, 1), program("waiting", 48, 1)));
    assert!(!of(program("running", 651, 1), program("waiting", 48, 1)));
    assert!(!of(program("running", 652, 0), program("waiting", 48, 1)));
    assert!(!of(program("running", 652, 1), program("exited(1)", 48, 1)));
    assert!(!most_in_use(&[program("running", 900, 1)], 1000 * MIB));
}

#[test]
fn a_program_that_ended_is_named() {
    let alive = program("running", 1, 1);
    assert!(check_all_alive(Side::B, &[alive.clone(), alive.clone()]).is_ok());
    let dead = Program {
        command: "hog fill=70%".into(),
        ..program("killed", 1, 1)
    };
    let error = check_all_alive(Side::B, &[alive, dead]).expect_err("one is dead");
    assert_eq!(
        error.to_string(),
        "not everything is right: program \"hog fill=70%\" of guest B has ended: killed"
    );
}

#[test]
fn a_round_is_complete_wherever_the_count_began() {
    const PAGES: u64 = 7;
    for start in 0..PAGES {
        let goal = after_a_round(&Program {
            rss_kib: 4 * PAGES,
            checks_ok: start,
            ..Program::default()
        });
        let round = (start..goal).skip_while(|check| check % PAGES != 0);
        assert!(round.count() as u64 >= PAGES);
    }
}
