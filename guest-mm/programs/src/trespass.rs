//! `trespass`: touches physical memory that is not the guest's, on purpose, as a broken driver would.

use crate::call::{self, say};
use guest_programs::options::Trespass;

/// Pause between two looks at the guest's blocks.
const LOOK_AGAIN_MS: u64 = 10;

/// Exit status 0 when the access went through, which is right for memory that is there and wrong for any other.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let where_to = match Trespass::parse(arguments) {
        Ok(where_to) => where_to,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let gpa = match where_to {
        Trespass::Address(gpa) => gpa,
        Trespass::FirstUnplugged | Trespass::GivenBack => call::system_info().first_unplugged,
    };
    if gpa == 0 {
        say(format_args!("no block is unplugged"));
        return 2;
    }
    if where_to == Trespass::GivenBack {
        say(format_args!("waiting for the block at {gpa:#x} to come and go"));
        wait_until(|first_unplugged| first_unplugged != gpa);
        wait_until(|first_unplugged| first_unplugged == gpa);
    }
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

/// Waits until the address of the lowest unplugged block, 0 for none, is as wanted.
fn wait_until(wanted: impl Fn(u64) -> bool) {
    while !wanted(call::system_info().first_unplugged) {
        call::sleep_ms(LOOK_AGAIN_MS);
    }
}
