//! What a guest says of itself over its control channel: the answers to `blocks`, `ps` and `vmstat`, read into values.
//!
//! The text comes from the guest and is not trusted: a line that does not fit is an error with that line in it, never
//! a guess, and no number in it decides how much is allocated.

use std::str::FromStr;

use thiserror::Error;

/// A line of the guest's answer that does not have the agreed shape.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{command}: cannot read the guest's line {line:?}")]
pub struct ViewError {
    command: &'static str,
    line: String,
}

/// How a guest sees one block of its hot-plug region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Not there.
    Unplugged,
    /// Asked for, or being made ready.
    Plugging,
    /// There, but no page of it may be used.
    Offline,
    /// In use.
    Online,
    /// No page of it may be allocated; those in use are being moved away.
    GoingOffline,
}

/// One line of `blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockView {
    /// Its state.
    pub state: BlockState,
    /// Free pages of 4 KiB.
    pub free_pages: u64,
    /// Pages of 4 KiB in use.
    pub used_pages: u64,
}

/// One line of `ps`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Process number.
    pub pid: u64,
    /// Its name and arguments.
    pub command: String,
    /// `running`, `waiting`, `exited(N)` or `killed`.
    pub state: String,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Verifications that found what was written.
    pub checks_ok: u64,
    /// Verifications that did not.
    pub checks_failed: u64,
    /// Page faults.
    pub faults: u64,
}

impl Program {
    /// Whether it still verifies.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state.as_str(), "running" | "waiting")
    }
}

/// What the demo reads from `vmstat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pages of 4 KiB moved to another frame; a huge page counts as the 512 pages that it is.
    pub pages_migrated: u64,
    /// Of these moves, how many were of whole huge pages.
    pub huge_pages_migrated: u64,
    /// Pages that could not be moved at one attempt.
    pub migrate_fail: u64,
    /// Blocks given up without moving a page.
    pub blocks_unplug_free: u64,
    /// Blocks given up.
    pub blocks_unplugged: u64,
}

/// Reads the answer to `blocks`: a header, then `INDEX GPA STATE ZONE FREE_PAGES USED_PAGES`, indices from 0 without gap.
///
/// # Errors
/// The first line that does not fit.
pub fn blocks(text: &str) -> Result<Vec<BlockView>, ViewError> {
    let read = |(index, line): (usize, &str)| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [number, _gpa, state, _zone, free, used] = fields[..] else {
            return None;
        };
        (number.parse() == Ok(index)).then_some(())?;
        Some(BlockView {
            state: block_state(state)?,
            free_pages: free.parse().ok()?,
            used_pages: used.parse().ok()?,
        })
    };
    rows(text)
        .enumerate()
        .map(|row| read(row).ok_or_else(|| unreadable("blocks", row.1)))
        .collect()
}

/// Reads the answer to `ps`: a header, then `PID NAME STATE RSS_KIB CHECKS_OK CHECKS_FAILED FAULTS ARGS...`.
///
/// # Errors
/// The first line that does not fit.
pub fn programs(text: &str) -> Result<Vec<Program>, ViewError> {
    let read = |line: &str| {
        let mut fields = line.split_whitespace();
        let pid = number(fields.next())?;
        let mut command = fields.next()?.to_owned();
        let program = Program {
            pid,
            command: String::new(),
            state: fields.next()?.to_owned(),
            rss_kib: number(fields.next())?,
            checks_ok: number(fields.next())?,
            checks_failed: number(fields.next())?,
            faults: number(fields.next())?,
        };
        for argument in fields {
            command.push(' ');
            command.push_str(argument);
        }
        Some(Program { command, ..program })
    };
    rows(text)
        .map(|line| read(line).ok_or_else(|| unreadable("ps", line)))
        .collect()
}

/// Reads the answer to `vmstat`: `name value` lines.
///
/// # Errors
/// A line that is not of that form, or a counter that the demo needs and the guest does not have.
pub fn counters(text: &str) -> Result<Counters, ViewError> {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|rest| rest.trim().parse::<u64>().ok())
            .ok_or_else(|| unreadable("vmstat", name))
    };
    Ok(Counters {
        pages_migrated: value("pgmigrate_success")?,
        huge_pages_migrated: value("thp_migration_success")?,
        migrate_fail: value("pgmigrate_fail")?,
        blocks_unplug_free: value("blocks_unplug_free")?,
        blocks_unplugged: value("blocks_unplugged")?,
    })
}

/// The lines after the header.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1).filter(|line| !line.trim().is_empty())
}

fn unreadable(command: &'static str, line: &str) -> ViewError {
    ViewError {
        command,
        line: line.chars().take(120).collect(),
    }
}

fn number<T: FromStr>(field: Option<&str>) -> Option<T> {
    field?.parse().ok()
}

fn block_state(word: &str) -> Option<BlockState> {
    Some(match word {
        "unplugged" => BlockState::Unplugged,
        "plugging" => BlockState::Plugging,
        "offline" => BlockState::Offline,
        "online" => BlockState::Online,
        "going-offline" => BlockState::GoingOffline,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_in_every_state() {
        let text = "INDEX GPA STATE ZONE FREE_PAGES USED_PAGES\n\
                    0 0x140000000 online Movable 100 1948\n\
                    1 0x140800000 going-offline Movable 0 7\n\
                    2 0x141000000 offline - 0 0\n\
                    3 0x141800000 plugging - 0 0\n\
                    4 0x142000000 unplugged - 0 0\n";
        let read = blocks(text).expect("well formed");
        assert_eq!(
            read.iter().map(|block| block.state).collect::<Vec<_>>(),
            [
                BlockState::Online,
                BlockState::GoingOffline,
                BlockState::Offline,
                BlockState::Plugging,
                BlockState::Unplugged
            ]
        );
        assert_eq!((read[0].free_pages, read[0].used_pages), (100, 1948));
    }

    #[test]
    fn a_block_line_out_of_order_or_short_or_unknown_is_an_error_that_shows_it() {
        for line in [
            "1 0x0 online Movable 0 0",
            "0 0x0 online Movable 0",
            "0 0x0 melting Movable 0 0",
            "0 0x0 online Movable 0 -1",
            "0 0x0 online Movable 0 0 extra",
        ] {
            let error = blocks(&format!("header\n{line}\n")).expect_err(line);
            assert!(error.to_string().contains(line), "{error}");
        }
    }

    #[test]
    fn programs_are_read_with_their_arguments() {
        let text = "PID NAME STATE RSS_KIB CHECKS_OK CHECKS_FAILED FAULTS ARGS\n\
                    1 hog running 641024 12345 0 313 fill=70% pages=huge\n\
                    2 hog exited(1) 0 5 1 9\n";
        let read = programs(text).expect("well formed");
        assert_eq!(read[0].command, "hog fill=70% pages=huge");
        assert_eq!(
            (read[0].rss_kib, read[0].checks_ok, read[0].checks_failed),
            (641_024, 12345, 0)
        );
        assert!(read[0].is_alive() && !read[1].is_alive());
        assert!(programs("header\n1 hog running x 0 0 0\n").is_err());
    }

    #[test]
    fn counters_need_their_whole_name() {
        let text = "pgfault 1\npgmigrate_success 1024\npgmigrate_success_other 5\npgmigrate_fail 3\n\
                    thp_migration_success 2\nblocks_unplugged 64\nblocks_unplug_free 60\nresize_stall_reason none\n";
        assert_eq!(
            counters(text),
            Ok(Counters {
                pages_migrated: 1024,
                huge_pages_migrated: 2,
                migrate_fail: 3,
                blocks_unplug_free: 60,
                blocks_unplugged: 64
            })
        );
        let error = counters(&text.replace("pgmigrate_fail 3\n", "")).expect_err("a counter is missing");
        assert!(error.to_string().contains("pgmigrate_fail"), "{error}");
    }
}
