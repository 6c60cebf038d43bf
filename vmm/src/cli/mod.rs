//! The command line: one file for each subcommand. A subcommand writes its result to standard output; everything else goes
//! to standard error, and a failure is one line there, `ballast: ...`, that names the value and the rule.
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | done; of `run`: the guest shut down or was stopped |
//! | 1 | a fault at run time; of `resize --wait`: the guest has not got there |
//! | 2 | the command line or the VM file breaks a rule; nothing was started |
//! | 3 | `run`: the guest panicked, or reset its machine in a loop |
//! | 4 | `run`: the guest touched unplugged memory and was killed for it |

mod balloon;
mod demo;
mod disk;
mod events;
mod failure;
mod guest;
mod guest_events;
mod image;
mod limit;
mod link;
mod log;
mod panics;
mod pause;
mod ps;
mod resize;
mod run;
mod stats;
mod stop;
mod table;

pub use failure::{Failure, Status, chain};

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::spec::VmName;

/// MicroVMs on Linux/KVM whose memory grows and shrinks, block by block, while they run
#[derive(Debug, Parser)]
#[command(name = "ballast", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    /// What to log on standard error: off, error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "BALLAST_LOG",
        default_value = "warn",
        hide_env_values = true,
        hide_possible_values = true,
        value_parser = log::levels()
    )]
    log: LevelFilter,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ballast run --name a --memory 512M --hotplug 4G --program 'hog fill=70%'
  ballast resize a 2G --wait 30
  ballast ps

The control sockets of running VMs are in $XDG_RUNTIME_DIR/ballast, or in /run/ballast.
Sizes are bytes, or numbers with K, M, G or T (2^10, 2^20, 2^30, 2^40): 512M, 1GiB.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Ps(ps::Ps),
    Resize(resize::Resize),
    Stats(stats::Stats),
    Balloon(balloon::Balloon),
    Events(events::Events),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Stop(stop::Stop),
    Guest(guest::Guest),
    Link(link::Link),
    Limit(limit::Limit),
    Image(image::Image),
    Disk(disk::Disk),
    Demo(demo::Demo),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    panics::end_the_process();
    match Cli::try_parse() {
        Ok(cli) => {
            log::to_standard_error(cli.log);
            cli.command
                .run()
                .map_or_else(|failure| failure.report(), ExitCode::from)
        }
        Err(error) => usage(&error),
    }
}

impl Command {
    fn run(&self) -> Result<Status, Failure> {
        match self {
            Self::Run(run) => run.run(),
            Self::Ps(ps) => ps.run(),
            Self::Resize(resize) => resize.run(),
            Self::Stats(stats) => stats.run(),
            Self::Balloon(balloon) => balloon.run(),
            Self::Events(events) => events.run(),
            Self::Pause(pause) => pause.run(),
            Self::Resume(resume) => resume.run(),
            Self::Stop(stop) => stop.run(),
            Self::Guest(guest) => guest.run(),
            Self::Link(link) => link.run(),
            Self::Limit(limit) => limit.run(),
            Self::Image(image) => image.run(),
            Self::Disk(disk) => disk.run(),
            Self::Demo(demo) => demo.run(),
        }
    }
}

/// Prints help where it was asked for, and anything else as a failure of one line.
fn usage(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // There is nobody to tell when the terminal is gone.
        let _ = error.print();
        return if asked {
            Status::Done.into()
        } else {
            Status::Usage.into()
        };
    }
    Failure::usage(UsageError(usage_line(&error.to_string()))).report()
}

/// A command line that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0} (see ballast --help)")]
struct UsageError(String);

/// The first paragraph of what clap says, in one line and without its `error: `.
fn usage_line(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// A VM's name among the arguments.
fn name_argument(name: &str) -> Result<VmName, Failure> {
    VmName::new(name).map_err(Failure::usage)
}

/// Writes a result. A reader that has gone away (`ballast ps | head -1`) has had enough, and is no failure.
fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print`], of anything.
fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::run_time(OutputError(error))),
        _ => Ok(()),
    }
}

/// Writes a result as one JSON value.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(Failure::run_time)?;
    print(&format!("{text}\n"))
}

/// Standard output is full or broken.
#[derive(Debug, thiserror::Error)]
#[error("standard output")]
struct OutputError(#[source] io::Error);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_help_with_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            let example = format!("ballast {}", command.get_name());
            assert!(help.contains("Example") && help.contains(&example), "{help}");
            assert!(
                command.get_about().is_some(),
                "{} says what it does",
                command.get_name()
            );
        }
    }

    #[test]
    fn usage_errors_become_one_line() {
        for (arguments, line) in [
            (&["ballast", "walk"][..], "unrecognized subcommand 'walk'"),
            (
                &["ballast", "run", "--fast"],
                "unexpected argument '--fast' found",
            ),
            (
                &["ballast", "resize", "a"],
                "the following required arguments were not provided: <SIZE>",
            ),
            (
                &["ballast", "ps", "--log", "loud"],
                "invalid value 'loud' for '--log <LEVEL>' [possible values: off, error",
            ),
        ] {
            let error = Cli::try_parse_from(arguments).expect_err("not a command line");
            let got = usage_line(&error.to_string());
            assert!(got.starts_with(line) && !got.contains('\n'), "{got}");
        }
    }

    #[test]
    fn a_size_may_begin_with_a_sign_and_options_are_still_options() {
        for arguments in [
            &["ballast", "resize", "a", "-512M", "--wait", "3", "--json"][..],
            &["ballast", "resize", "--json", "a", "--wait", "3", "-512M"],
            &["ballast", "resize", "a", "--json", "+512M", "--wait=3"],
        ] {
            let cli = Cli::try_parse_from(arguments).expect("a command line");
            let text = format!("{:?}", cli.command);
            assert!(
                text.contains("512M") && text.contains("wait: Some(3), deadline: None, json: true"),
                "{text}"
            );
        }
    }
}
