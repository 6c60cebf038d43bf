//! The programs as the guest runs them: one executable for all. `program_start` is where a program begins, with a
//! stack and nothing else; its arguments it asks for.
#![no_std]
#![no_main]

mod aio_call;
mod bench;
mod call;
mod checks;
mod direct;
mod disk;
mod family;
mod file_call;
mod hog;
mod intrinsics;
mod kept;
mod kind;
mod memory_call;
mod pager;
mod reserved;
mod rights;
mod scatter;
mod shared;
mod sparse;
mod storm;
mod stress;
mod told;
mod trespass;
mod window;

use call::say;
use core::panic::PanicInfo;

/// Bytes that a program's arguments may take.
const MAX_ARGUMENTS: usize = 1024;

/// Called by `program_start` (call.rs): looks at the arguments and becomes what the first one says.
fn main() -> u64 {
    let mut bytes = [0; MAX_ARGUMENTS];
    let len = call::arguments(&mut bytes);
    let text = bytes
        .get(..len)
        .and_then(|bytes| core::str::from_utf8(bytes).ok());
    let Some(text) = text else {
        say(format_args!(
            "arguments of more than {MAX_ARGUMENTS} bytes, or not UTF-8"
        ));
        return 2;
    };
    let mut arguments = text.split_terminator('\0');
    match arguments.next().map(guest_programs::name_of) {
        Some("bench") => bench::main(arguments),
        Some("direct") => direct::main(arguments),
        Some("family") => family::main(arguments),
        Some("files") => disk::files(arguments),
        Some("kept") => kept::main(arguments),
        Some("names") => disk::names(arguments),
        Some("hog") => hog::main(arguments),
        Some("kind") => kind::main(arguments),
        Some("pager") => pager::main(arguments),
        Some("reserved") => reserved::main(arguments),
        Some("rights") => rights::main(arguments),
        Some("shared") => shared::main(arguments),
        Some("scatter") => scatter::main(arguments),
        Some("sparse") => sparse::main(arguments),
        Some("storm") => storm::main(arguments),
        Some("stress") => stress::main(arguments),
        Some("told") => told::main(arguments),
        Some("trespass") => trespass::main(arguments),
        Some("window") => window::main(arguments),
        Some("crash") => crash(),
        name => {
            say(format_args!("no such program: {}", name.unwrap_or_default()));
            127
        }
    }
}

/// Touches an address where nothing is: the guest must end this program, and nothing but it.
fn crash() -> u64 {
    say(format_args!("about to write to address 8"));
    call::write_byte(8, 1);
    say(format_args!("wrote to address 8 and lived"));
    1
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say(format_args!("{info}"));
    call::exit(101)
}
