//! `--vsock cid=NUMBER,path=SOCKET`: stream sockets between programs of the guest and of the host.

use std::path::PathBuf;

use devices::vsock::GuestCid;

use super::check::{parts, path};
use super::error::SpecError;
use crate::vsock::SOCKET_PATH_MAX;

const OPTION: &str = "--vsock";
const FORM: &str = "cid=NUMBER,path=SOCKET";

// Messages name it.
const _: () = assert!(SOCKET_PATH_MAX == 96);

/// A socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    /// The guest's context id.
    pub cid: GuestCid,
    /// Where programs of the host ask for ports of the guest; those of the host's that the guest asks for are `PATH_PORT`.
    pub path: PathBuf,
}

/// The socket device, if there is one.
pub(super) fn vsock(text: Option<&str>) -> Result<Option<VsockSpec>, SpecError> {
    let Some(text) = text else { return Ok(None) };
    let [cid, socket] = parts(OPTION, text, ["cid", "path"], FORM)?;
    let (Some(cid), Some(socket)) = (cid, socket) else {
        return Err(SpecError::Choice {
            option: OPTION,
            value: text.to_owned(),
            allowed: FORM,
        });
    };
    let cid = cid
        .parse()
        .ok()
        .and_then(GuestCid::new)
        .ok_or_else(|| SpecError::Text {
            option: "--vsock cid=",
            value: cid.to_owned(),
            rule: "a guest's context id is 3 to 4294967294",
        })?;
    let socket = PathBuf::from(socket);
    path("--vsock path=", &socket)?;
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(SpecError::Text {
            option: "--vsock path=",
            value: socket.display().to_string(),
            rule: "longer than 96 bytes, which leaves no room for a port behind it",
        });
    }
    Ok(Some(VsockSpec { cid, path: socket }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::*;

    fn refused(text: &str) -> String {
        refusal(&with(|options| options.vsock = Some(text.into())))
    }

    #[test]
    fn a_context_id_and_a_path_in_either_order_are_a_device() {
        for text in ["cid=3,path=/run/v", "path=/run/v,cid=3"] {
            let spec = validate(&with(|options| options.vsock = Some(text.into()))).unwrap();
            let vsock = spec.vsock.unwrap();
            assert_eq!((vsock.cid.get(), vsock.path), (3, PathBuf::from("/run/v")));
        }
        assert_eq!(validate(&with(|_| ())).unwrap().vsock, None);
    }

    #[test]
    fn anything_else_is_refused_with_the_form() {
        for text in [
            "",
            "3",
            "cid=3",
            "path=x",
            "cid=3,path=x,cid=4",
            "cid=3,path=x,port=1",
            "cid,path=x",
        ] {
            let message = format!("--vsock {text:?}: one of cid=NUMBER,path=SOCKET");
            assert_eq!(refused(text), message);
        }
    }

    #[test]
    fn context_ids_that_are_not_a_guests_are_refused() {
        for cid in ["0", "2", "4294967295", "18446744073709551615", "-3", "x", ""] {
            let message = format!("--vsock cid= {cid:?}: a guest's context id is 3 to 4294967294");
            assert_eq!(refused(&format!("cid={cid},path=x")), message);
        }
    }

    #[test]
    fn a_path_has_room_for_a_port_behind_it() {
        assert_eq!(refused("cid=3,path="), "--vsock path= \"\": a path is not empty");
        let longest = "x".repeat(SOCKET_PATH_MAX);
        assert!(
            validate(&with(
                |options| options.vsock = Some(format!("cid=3,path={longest}"))
            ))
            .is_ok()
        );
        let message = refused(&format!("cid=3,path={longest}x"));
        assert!(message.ends_with("longer than 96 bytes, which leaves no room for a port behind it"));
    }
}
