//! `--hvc WHERE`: what stands at the host behind port 0 of the console device, which Linux calls `/dev/hvc0`.

use std::path::PathBuf;

use super::check::path;
use super::console_port::PortEnd;
use super::error::SpecError;
use super::payload::Payload;
use super::serial::SerialMode;

const OPTION: &str = "--hvc";

/// What the console's first port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HvcMode {
    /// The control channel: `ballast guest NAME ...` asks here, and only the built-in guest's manager answers.
    Channel,
    /// Standard input and output in raw mode, with the escape key.
    Terminal,
    /// A unix socket or a file.
    End(PortEnd),
    /// Nothing: what the guest writes is dropped.
    Discard,
}

/// What the console's first port is, of a guest that boots `payload`.
pub(super) fn hvc(text: Option<&str>, payload: &Payload) -> Result<HvcMode, SpecError> {
    let mode = match text {
        None | Some("channel") => HvcMode::Channel,
        Some("terminal") => HvcMode::Terminal,
        Some("discard") => HvcMode::Discard,
        Some(other) => HvcMode::End(end(other)?),
    };
    if mode != HvcMode::Channel && matches!(payload, Payload::BuiltIn { .. }) {
        return Err(SpecError::Missing {
            option: OPTION,
            missing: "--kernel",
            rule: "the first port of the built-in guest is its control channel",
        });
    }
    Ok(mode)
}

/// Where the serial port goes that nobody has said anything of.
pub(super) fn default_serial(hvc: &HvcMode) -> SerialMode {
    if *hvc == HvcMode::Terminal {
        SerialMode::Discard
    } else {
        SerialMode::Terminal
    }
}

/// Standard input belongs to one of the consoles.
pub(super) fn check_terminal(hvc: &HvcMode, serial: &SerialMode) -> Result<(), SpecError> {
    if (hvc, serial) == (&HvcMode::Terminal, &SerialMode::Terminal) {
        return Err(SpecError::Conflict {
            option: "--hvc terminal",
            other: "--serial terminal",
            rule: "standard input belongs to one of them",
        });
    }
    Ok(())
}

fn end(text: &str) -> Result<PortEnd, SpecError> {
    let place = match text.split_once('=') {
        Some(("path", place)) => Some(("--hvc path=", PortEnd::Socket(PathBuf::from(place)))),
        Some(("file", place)) => Some(("--hvc file=", PortEnd::File(PathBuf::from(place)))),
        _ => None,
    };
    let (option, end) = place.ok_or_else(|| SpecError::Choice {
        option: OPTION,
        value: text.to_owned(),
        allowed: "channel, terminal, path=SOCKET, file=FILE, discard",
    })?;
    path(option, end.place())?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::super::{SerialMode, VmOptions, VmSpec};
    use super::*;

    fn linux(hvc: Option<&str>, serial: Option<&str>) -> VmOptions {
        with(|options| {
            options.kernel = Some("k".into());
            options.hvc = hvc.map(Into::into);
            options.serial = serial.map(Into::into);
        })
    }

    fn spec(hvc: Option<&str>, serial: Option<&str>) -> VmSpec {
        validate(&linux(hvc, serial)).unwrap()
    }

    #[test]
    fn a_kernel_of_the_users_may_have_its_console_anywhere() {
        for (text, mode) in [
            (None, HvcMode::Channel),
            (Some("channel"), HvcMode::Channel),
            (Some("terminal"), HvcMode::Terminal),
            (Some("discard"), HvcMode::Discard),
            (Some("path=/s"), HvcMode::End(PortEnd::Socket("/s".into()))),
            (Some("file=/f"), HvcMode::End(PortEnd::File("/f".into()))),
        ] {
            assert_eq!(spec(text, None).hvc, mode);
        }
    }

    #[test]
    fn the_terminal_belongs_to_one_console() {
        assert_eq!(spec(None, None).serial, SerialMode::Terminal);
        assert_eq!(spec(Some("terminal"), None).serial, SerialMode::Discard);
        assert_eq!(spec(Some("terminal"), Some("stdout")).serial, SerialMode::Stdout);
        assert_eq!(
            refusal(&linux(Some("terminal"), Some("terminal"))),
            "--hvc terminal and --serial terminal: standard input belongs to one of them"
        );
    }

    #[test]
    fn the_built_in_guest_keeps_its_channel() {
        let options = |text: &str| with(|options| options.hvc = Some(text.into()));
        assert_eq!(validate(&options("channel")).unwrap().hvc, HvcMode::Channel);
        assert_eq!(
            refusal(&options("terminal")),
            "--hvc without --kernel: the first port of the built-in guest is its control channel"
        );
    }

    #[test]
    fn anything_else_is_refused_with_the_choices() {
        for text in ["", "stdio", "path", "File=x"] {
            let message =
                format!("--hvc {text:?}: one of channel, terminal, path=SOCKET, file=FILE, discard");
            assert_eq!(refusal(&linux(Some(text), None)), message);
        }
        assert_eq!(
            refusal(&linux(Some("file="), None)),
            "--hvc file= \"\": a path is not empty"
        );
    }
}
