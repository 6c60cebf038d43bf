//! Samples as lines of text, from where they are taken to where the table is printed.

use std::error::Error;
use std::fmt;

use crate::figure::Figure;
use crate::row::{Goal, Row, Unit};

/// Begins the line of a sample.
const MARK: &str = "sample: ";

/// Who is measured against.
const PEER: &str = "qemu";

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Boot,
    Plug,
    Unplug,
    Inflate,
    Deflate,
    ResidentBefore,
    ResidentAfter,
}

impl What {
    const ALL: [What; 7] = [
        What::Boot,
        What::Plug,
        What::Unplug,
        What::Inflate,
        What::Deflate,
        What::ResidentBefore,
        What::ResidentAfter,
    ];

    fn name(self) -> &'static str {
        match self {
            What::Boot => "boot to the guest's shell",
            What::Plug => "plug 512 MiB",
            What::Unplug => "unplug 512 MiB, used",
            What::Inflate => "inflate 256 MiB, used",
            What::Deflate => "deflate 256 MiB",
            What::ResidentBefore => "resident, all used",
            What::ResidentAfter => "resident, given back",
        }
    }

    fn unit(self) -> Unit {
        match self {
            What::ResidentBefore | What::ResidentAfter => Unit::Mebibytes,
            _ => Unit::Milliseconds,
        }
    }
}

/// One measurement, printed as a line.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) what: What,
    /// The VMM.
    pub(crate) who: &'static str,
    /// In the row's unit.
    pub(crate) value: f64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample { what, who, value } = self;
        write!(f, "{MARK}{what:?} {who} {value}")
    }
}

/// The rows that the samples among the lines make.
///
/// # Errors
/// A row has no sample of one of the two.
pub(crate) fn rows(printed: &str) -> Result<Vec<Row>, Box<dyn Error>> {
    let values = |what: What, who: &str| -> Result<Figure, Box<dyn Error>> {
        let start = format!("{MARK}{what:?} {who} ");
        let values: Result<Vec<f64>, _> = printed
            .lines()
            .filter_map(|line| line.strip_prefix(&start))
            .map(str::parse)
            .collect();
        match values? {
            values if values.is_empty() => Err(format!("{}: no sample of {who}", what.name()).into()),
            values => Ok(Figure::of(values)),
        }
    };
    What::ALL
        .into_iter()
        .map(|what| {
            Ok(Row {
                name: what.name(),
                who: "ballast",
                unit: what.unit(),
                goal: Goal::AtMostOf {
                    peer: PEER,
                    target: 1.0,
                },
                ours: values(what, "ballast")?,
                peers: vec![(PEER.to_owned(), values(what, PEER)?)],
            })
        })
        .collect()
}
