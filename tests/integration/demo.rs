//! The main job in one command: memory moves between two running guests inside a budget, and nothing is lost.

use integration_tests::Home;
use serde_json::Value;

#[test]
fn the_demo_moves_memory_and_loses_nothing() {
    let home = Home::new();
    let text = home.run(["demo", "--json"]).success();
    let result: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    let number = |field: &str| {
        result[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no number {field} in {result}"))
    };
    assert!(number("moves") >= 4, "{result}");
    assert!(number("bytes_moved") >= number("moves") * (256 << 20), "{result}");
    assert!(number("pages_migrated") > 0, "{result}");
    assert!(number("checks_ok") > 0, "{result}");
    assert_eq!(
        (number("checks_failed"), number("violations")),
        (0, 0),
        "{result}"
    );
    assert!(number("peak_host_bytes") <= number("budget_bytes"), "{result}");
    assert!(
        number("peak_host_bytes") > 0 && result["seconds"].is_number(),
        "{result}"
    );
    home.assert_nothing_left();
}

#[test]
fn off_a_terminal_the_demo_writes_plain_lines() {
    let home = Home::new();
    let text = home.run(["demo"]).success();
    assert!(
        !text.contains('\u{1b}'),
        "escape sequences without a terminal:\n{text}"
    );
    let budget = text
        .find("budget")
        .unwrap_or_else(|| panic!("no budget in:\n{text}"));
    let move_4 = text
        .find("move 4")
        .unwrap_or_else(|| panic!("no fourth move in:\n{text}"));
    let summary = text
        .find("went from guest to guest")
        .unwrap_or_else(|| panic!("no summary in:\n{text}"));
    assert!(budget < move_4 && move_4 < summary, "out of order:\n{text}");
    home.assert_nothing_left();
}
