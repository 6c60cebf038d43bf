//! `--console-port name=NAME,path=SOCKET` or `name=NAME,file=FILE`: ports of the guest's console device.

use std::path::{Path, PathBuf};

use devices::console::{NAMED_PORTS_LIMIT, PortName};

use super::check::{parts, path};
use super::error::SpecError;

const OPTION: &str = "--console-port";
const FORM: &str = "name=NAME,path=SOCKET, name=NAME,file=FILE";

// Messages name them.
const _: () = assert!(PortName::MAX == 32 && NAMED_PORTS_LIMIT == 8);

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePortSpec {
    /// By which the guest finds it: `/dev/virtio-ports/NAME` in Linux.
    pub name: PortName,
    /// What is at the host.
    pub end: PortEnd,
}

/// What stands at the host behind a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortEnd {
    /// A unix socket, for one program at a time.
    Socket(PathBuf),
    /// A file, to which what the guest writes is appended.
    File(PathBuf),
}

impl PortEnd {
    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Path {
        match self {
            Self::Socket(path) | Self::File(path) => path,
        }
    }
}

/// The ports, in the order of their numbers.
pub(super) fn console_ports(texts: &[String]) -> Result<Vec<ConsolePortSpec>, SpecError> {
    let refuse = |option, value: &str, rule| SpecError::Text {
        option,
        value: value.to_owned(),
        rule,
    };
    let mut ports: Vec<ConsolePortSpec> = Vec::new();
    for text in texts {
        let [name, socket, file] = parts(OPTION, text, ["name", "path", "file"], FORM)?;
        let (name, option, place) = match (name, socket, file) {
            (Some(name), Some(socket), None) => (name, "--console-port path=", socket),
            (Some(name), None, Some(file)) => (name, "--console-port file=", file),
            _ => {
                return Err(SpecError::Choice {
                    option: OPTION,
                    value: text.clone(),
                    allowed: FORM,
                });
            }
        };
        let rule = "a port's name has 1 to 32 of A-Z a-z 0-9 . _ -";
        let name = PortName::new(name).ok_or_else(|| refuse("--console-port name=", name, rule))?;
        if ports.iter().any(|port| port.name == name) {
            let rule = "two ports of a console have different names";
            return Err(refuse("--console-port name=", &name.to_string(), rule));
        }
        let place = PathBuf::from(place);
        path(option, &place)?;
        let end = if socket.is_some() {
            PortEnd::Socket(place)
        } else {
            PortEnd::File(place)
        };
        ports.push(ConsolePortSpec { name, end });
    }
    match texts.get(NAMED_PORTS_LIMIT) {
        Some(beyond) => Err(refuse(OPTION, beyond, "a console has at most 8 named ports")),
        None => Ok(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::*;

    fn options(texts: &[&str]) -> super::super::VmOptions {
        with(|options| options.console_port = texts.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn ports_come_in_the_order_in_which_they_are_named() {
        let spec = validate(&options(&["name=log,file=/l", "path=/s,name=agent"])).unwrap();
        assert_eq!(spec.console_ports[0].end, PortEnd::File("/l".into()));
        assert_eq!(spec.console_ports[1].name.to_string(), "agent");
        assert_eq!(spec.console_ports[1].end, PortEnd::Socket("/s".into()));
    }

    #[test]
    fn what_is_no_port_is_refused_with_value_and_rule() {
        for text in [
            "",
            "name=a",
            "path=x",
            "name=a,path=x,file=y",
            "name=a,name=b,path=x",
        ] {
            assert!(
                refusal(&options(&[text])).starts_with(&format!("--console-port {text:?}: one of name="))
            );
        }
        let message = refusal(&options(&["name=a/b,path=x"]));
        assert_eq!(
            message,
            "--console-port name= \"a/b\": a port's name has 1 to 32 of A-Z a-z 0-9 . _ -"
        );
        assert!(refusal(&options(&["name=a,path=x", "name=a,path=y"])).contains("different names"));
        assert!(refusal(&options(&["name=a,file="])).contains("a path is not empty"));
        let many: Vec<String> = (0..9)
            .map(|number| format!("name=p{number},path=x{number}"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(validate(&options(&many[..8])).is_ok());
        assert!(refusal(&options(&many)).contains("at most 8 named ports"));
    }
}
