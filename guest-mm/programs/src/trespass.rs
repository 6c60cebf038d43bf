//! `trespass`: touches physical memory that is not the guest's, on purpose, as a broken driver would.

use crate::call::{self, say};
use guest_programs::options::Trespass;

/// Exit status 0 when the access went through, which is right for memory that is there and wrong for any other.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let gpa = match Trespass::parse(arguments) {
        Ok(Trespass::Address(gpa)) => gpa,
        Ok(Trespass::FirstUnplugged) => match call::system_info().first_unplugged {
            0 => {
                say(format_args!("no block is unplugged"));
                return 2;
            }
            gpa => gpa,
        },
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let Ok(address) = call::map_physical(gpa) else {
        say(format_args!("physical address {gpa:#x} cannot be mapped"));
        return 2;
    };
    say(format_args!("about to touch physical address {gpa:#x}"));
    let byte = call::read_byte(address);
    call::write_byte(address, byte);
    say(format_args!(
        "read and wrote {byte:#04x} at physical address {gpa:#x}"
    ));
    0
}
