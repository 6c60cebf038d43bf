//! `--net tap=NAME[,mac=ADDRESS]`: network interfaces, in the order in which the guest finds them.

use devices::net::MacAddress;

use super::VmName;
use super::check::parts;
use super::error::SpecError;
use crate::net::TapName;

const OPTION: &str = "--net";
const FORM: &str = "tap=NAME[,mac=ADDRESS]";

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// The tap at the host.
    pub tap: TapName,
    /// The guest's address; made from the names of the VM and of the tap if none is given, so that it stays the same.
    pub mac: MacAddress,
}

/// The network interfaces of the VM called `vm`.
pub(super) fn net(texts: &[String], vm: &VmName) -> Result<Vec<NetSpec>, SpecError> {
    let mut interfaces: Vec<NetSpec> = Vec::new();
    for text in texts {
        let interface = interface(text, vm)?;
        if interfaces.iter().any(|other| other.tap == interface.tap) {
            return Err(SpecError::Text {
                option: "--net tap=",
                value: interface.tap.to_string(),
                rule: "a tap belongs to one interface",
            });
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

fn interface(text: &str, vm: &VmName) -> Result<NetSpec, SpecError> {
    let [tap, mac] = parts(OPTION, text, ["tap", "mac"], FORM)?;
    let tap = tap.ok_or_else(|| SpecError::Choice {
        option: OPTION,
        value: text.to_owned(),
        allowed: FORM,
    })?;
    let name = TapName::new(tap).ok_or_else(|| SpecError::Text {
        option: "--net tap=",
        value: tap.to_owned(),
        rule: "an interface's name has 1 to 15 bytes, none of them a space, '/', ':' or '%'",
    })?;
    let mac = match mac {
        Some(mac) => parse_mac(mac).ok_or_else(|| SpecError::Text {
            option: "--net mac=",
            value: mac.to_owned(),
            rule: "an address is like 02:00:00:12:34:56, and not that of a group",
        })?,
        None => MacAddress::from_seed(seed(vm, &name)),
    };
    Ok(NetSpec { tap: name, mac })
}

/// `02:00:00:12:34:56`, each byte as two digits.
fn parse_mac(text: &str) -> Option<MacAddress> {
    let mut bytes = [0; 6];
    let mut words = text.split(':');
    for byte in &mut bytes {
        let word = words.next().filter(|word| word.len() == 2)?;
        let is_hexadecimal = word.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(word, 16).ok().filter(|_| is_hexadecimal)?;
    }
    words.next().is_none().then(|| MacAddress::new(bytes))?
}

/// FNV-1a over both names, and so the same with every version of everything.
fn seed(vm: &VmName, tap: &TapName) -> u64 {
    let bytes = vm.as_str().bytes().chain([0]).chain(tap.as_str().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refusal, validate, with};
    use super::*;

    fn interfaces(texts: &[&str]) -> Vec<NetSpec> {
        let net = texts.iter().map(ToString::to_string).collect();
        validate(&with(|options| options.net = net)).expect("valid").net
    }

    fn refused(texts: &[&str]) -> String {
        let net = texts.iter().map(ToString::to_string).collect();
        refusal(&with(|options| options.net = net))
    }

    #[test]
    fn interfaces_come_in_the_order_in_which_they_are_named() {
        let found = interfaces(&["tap=tap1,mac=02:00:00:12:aB:56", "tap=tap0"]);
        assert_eq!(found[0].tap.as_str(), "tap1");
        assert_eq!(found[0].mac.bytes(), [2, 0, 0, 0x12, 0xab, 0x56]);
        assert_eq!(found[1].tap.as_str(), "tap0");
        assert!(interfaces(&[]).is_empty());
    }

    #[test]
    fn an_address_that_nobody_gives_is_always_the_same_and_not_anothers() {
        let address = |text: &str| interfaces(&[text])[0].mac.to_string();
        assert_eq!(address("tap=a"), "02:81:94:cc:16:cc");
        assert_ne!(address("tap=a"), address("tap=b"));
    }

    #[test]
    fn what_is_no_interface_is_refused_with_value_and_rule() {
        for text in [
            "",
            "tap0",
            "mac=02:00:00:00:00:01",
            "tap=a,tap=b",
            "tap=a,mtu=9000",
        ] {
            let message = format!("--net {text:?}: one of tap=NAME[,mac=ADDRESS]");
            assert_eq!(refused(&[text]), message);
        }
        assert!(refused(&["tap=a/b"]).starts_with("--net tap= \"a/b\": an interface's name has"));
        for mac in [
            "",
            "x",
            "02:00:00:12:34",
            "02:00:00:12:34:56:78",
            "+2:00:00:12:34:56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            let message = refused(&[&format!("tap=a,mac={mac}")]);
            assert!(
                message.starts_with(&format!("--net mac= {mac:?}: an address is like")),
                "{message}"
            );
        }
        assert_eq!(
            refused(&["tap=a", "tap=a"]),
            "--net tap= \"a\": a tap belongs to one interface"
        );
    }
}
