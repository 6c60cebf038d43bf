//! The kinds of events, and how they are written: one JSON object a line.
//!
//! Every line has `sequence`, `milliseconds` and `event`, which names the kind; the other fields are the kind's own. Sizes
//! are bytes. New kinds and fields may be added; those that exist keep their meaning.

use serde::{Deserialize, Serialize};

use crate::control::report::VmState;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: 1, 2, 3, … for each VM.
    pub sequence: u64,
    /// When it happened, in milliseconds since the VM was built.
    pub milliseconds: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The VM is in another state; `reason` says why it ends.
    State {
        /// The new state.
        state: VmState,
        /// Why the VM ends, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The guest has reset its machine, and boots again.
    Reboot {
        /// How: `i8042`, `reset-register` or `triple-fault`.
        cause: String,
    },
    /// The guest has plugged neighbouring blocks.
    Plug(BlockChange),
    /// The guest has unplugged neighbouring blocks.
    Unplug(BlockChange),
    /// A step of a resize. All sizes are totals, boot memory included.
    Resize {
        /// Which.
        step: ResizeStep,
        /// What the guest is to have.
        target_bytes: u64,
        /// What it has.
        reached_bytes: u64,
        /// Why it is not there, in one word for programs: as in `ResizeReport`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
        /// Why it is not there, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The balloon is to have another size, or has come a good part of the way there, or has left it.
    Balloon {
        /// What is wanted in it.
        target_bytes: u64,
        /// What is in it.
        held_bytes: u64,
    },
    /// The guest has touched an unplugged block.
    Violation {
        /// Guest-physical address of the access.
        gpa: u64,
        /// Which memory device, in the order of their regions.
        #[serde(default)]
        region: usize,
        /// Index of the block in its region.
        block: u64,
        /// Where the CPU was.
        rip: u64,
    },
    /// The reader was too slow, or came too late, for this many events; `sequence` is that of the last of them.
    Missed {
        /// How many.
        count: u64,
    },
}

/// Blocks that have come or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockChange {
    /// Which memory device, in the order of their regions.
    pub device: usize,
    /// Index of the first block in its region.
    pub first_block: u64,
    /// How many blocks.
    pub blocks: u64,
    /// Guest-physical address of the first one.
    pub gpa: u64,
    /// Their size together.
    pub bytes: u64,
}

/// What became of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResizeStep {
    /// The guest has been asked.
    Requested,
    /// The guest has exactly what it was asked for.
    Reached,
    /// The guest is not there, and nothing has moved for a while.
    Stalled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_that_reads_back_as_itself() {
        let block = BlockChange {
            device: 1,
            first_block: 2,
            blocks: 3,
            gpa: 4 << 30,
            bytes: 6 << 20,
        };
        let state = |reason| EventKind::State {
            state: VmState::Exiting,
            reason,
        };
        for (kind, text) in [
            (state(None), r#""event":"state","state":"exiting""#),
            (
                state(Some("stopped".into())),
                r#""state":"exiting","reason":"stopped""#,
            ),
            (
                EventKind::Plug(block),
                r#""event":"plug","device":1,"first_block":2,"blocks":3,"gpa":4294967296,"bytes":6291456"#,
            ),
            (EventKind::Unplug(block), r#""event":"unplug","device":1"#),
            (
                EventKind::Resize {
                    step: ResizeStep::Stalled,
                    target_bytes: 5,
                    reached_bytes: 4,
                    cause: Some("refused".into()),
                    reason: Some("busy".into()),
                },
                r#""event":"resize","step":"stalled","target_bytes":5,"reached_bytes":4,"cause":"refused","reason":"busy""#,
            ),
            (
                EventKind::Balloon {
                    target_bytes: 6,
                    held_bytes: 5,
                },
                r#""event":"balloon","target_bytes":6,"held_bytes":5"#,
            ),
            (
                EventKind::Violation {
                    gpa: 1,
                    region: 4,
                    block: 2,
                    rip: 3,
                },
                r#""event":"violation","gpa":1,"region":4,"block":2,"rip":3"#,
            ),
            (EventKind::Missed { count: 9 }, r#""event":"missed","count":9"#),
        ] {
            let event = Event {
                sequence: 7,
                milliseconds: 8,
                kind,
            };
            let line = serde_json::to_string(&event).expect("plain data");
            assert!(line.starts_with(r#"{"sequence":7,"milliseconds":8,"#), "{line}");
            assert!(line.contains(text) && !line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Event>(&line).expect("just written"), event);
        }
    }
}
