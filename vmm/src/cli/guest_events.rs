//! `ballast guest NAME events`: what happens to the blocks and nodes of the built-in guest, once or as it happens, as text or as JSON.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::{Failure, OutputError, Status};
use crate::control::client::{ClientError, ControlClient};

/// How often the guest is asked for more. It is asked by others, too, and answers one after the other, so that no question can wait there.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be printed, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GuestEvents {
    after: u64,
    until: Until,
    format: Format,
}

#[derive(Debug, PartialEq, Eq)]
enum Until {
    /// All that has happened so far is printed.
    Now,
    /// The VM ends.
    End,
}

#[derive(Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// A line of the guest's answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Line<'a> {
    /// A step of a block or a node.
    Step {
        number: u64,
        name: &'a str,
        from: &'a str,
        to: &'a str,
    },
    /// Steps that the guest has not kept.
    Missed { missed: u64, first: u64, last: u64 },
    /// The guest was started again since, and counts from 1 again.
    Restarted { restarted: bool, newest: u64 },
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words[..] {
            ["missed", missed, "events,", first, "to", last] => Self::Missed {
                missed: missed.parse().ok()?,
                first: first.parse().ok()?,
                last: last.parse().ok()?,
            },
            ["restarted", newest] => Self::Restarted {
                restarted: true,
                newest: newest.parse().ok()?,
            },
            [number, name, from, to] => Self::Step {
                number: number.parse().ok()?,
                name,
                from,
                to,
            },
            _ => return None,
        })
    }

    /// The number after which to ask next.
    const fn next_after(&self) -> u64 {
        match self {
            Self::Step { number, .. } => *number,
            Self::Missed { last, .. } => *last,
            Self::Restarted { .. } => 0,
        }
    }
}

impl GuestEvents {
    /// The question, if it is this one.
    ///
    /// # Errors
    /// It has arguments that are none.
    pub(super) fn asked_for(command: &[String]) -> Result<Option<Self>, String> {
        let [question, arguments @ ..] = command else {
            return Ok(None);
        };
        if question != "events" {
            return Ok(None);
        }
        let mut events = Self {
            after: 0,
            until: Until::Now,
            format: Format::Text,
        };
        for argument in arguments {
            match (argument.as_str(), argument.parse()) {
                ("--follow", _) => events.until = Until::End,
                ("--json", _) => events.format = Format::Json,
                (_, Ok(after)) => events.after = after,
                (other, Err(_)) => {
                    return Err(format!(
                        "events takes the number of the event after which to begin, --follow and --json, not {other:?}"
                    ));
                }
            }
        }
        Ok(Some(events))
    }

    pub(super) fn run(mut self, client: &ControlClient) -> Result<Status, Failure> {
        let mut answer = client.guest(&self.question())?;
        loop {
            let text = self.take(&answer)?;
            let mut stdout = io::stdout().lock();
            match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
                // A reader that has gone away has had enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Status::Done),
                Err(error) => return Err(Failure::run_time(OutputError(error))),
                Ok(()) => {}
            }
            if self.until == Until::Now {
                return Ok(Status::Done);
            }
            thread::sleep(PAUSE);
            answer = match client.guest(&self.question()) {
                Err(ClientError::Exited { .. } | ClientError::Registry(_)) => return Ok(Status::Done),
                // It is just being started again.
                Err(ClientError::Refused { .. }) => String::new(),
                answer => answer?,
            };
        }
    }

    fn question(&self) -> String {
        format!("events {}", self.after)
    }

    /// What is to be printed of an answer.
    fn take(&mut self, answer: &str) -> Result<String, Failure> {
        let mut text = String::new();
        for line in answer.lines() {
            let parsed = Line::parse(line).ok_or_else(|| {
                Failure::run_time(format!("the guest's answer is not understood: {line:?}"))
            })?;
            self.after = parsed.next_after();
            match self.format {
                Format::Text => text += line,
                Format::Json => text += &serde_json::to_string(&parsed).map_err(Failure::run_time)?,
            }
            text.push('\n');
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Option<GuestEvents>, String> {
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        GuestEvents::asked_for(&words)
    }

    #[test]
    fn only_this_question_is_taken_and_its_arguments_are_known_ones() {
        assert_eq!(asked("blocks"), Ok(None));
        let events = asked("events 41 --json --follow").unwrap().unwrap();
        assert_eq!(
            events,
            GuestEvents {
                after: 41,
                until: Until::End,
                format: Format::Json
            }
        );
        assert!(asked("events --fast").unwrap_err().contains("not \"--fast\""));
        assert!(asked("events -1").is_err());
    }

    #[test]
    fn the_next_question_begins_where_the_answer_has_ended() {
        let mut events = asked("events").unwrap().unwrap();
        let answer = "missed 44 events, 1 to 44\n45 memory3 plugging offline\n46 node1 offline online\n";
        assert_eq!(events.take(answer).unwrap(), answer);
        assert_eq!(events.question(), "events 46");
        assert_eq!(events.take("").unwrap(), "");
        assert_eq!(events.question(), "events 46");
        // A guest that was started again has other events.
        assert_eq!(events.take("restarted 7\n").unwrap(), "restarted 7\n");
        assert_eq!(events.question(), "events 0");
        assert!(events.take("something else\n").is_err());
    }

    #[test]
    fn every_line_is_an_object() {
        let mut events = asked("events --json").unwrap().unwrap();
        let text = events
            .take("missed 44 events, 1 to 44\n45 memory3 plugging offline\nrestarted 7\n")
            .unwrap();
        let expected = [
            r#"{"missed":44,"first":1,"last":44}"#,
            r#"{"number":45,"name":"memory3","from":"plugging","to":"offline"}"#,
            r#"{"restarted":true,"newest":7}"#,
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
