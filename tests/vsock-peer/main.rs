//! A program that talks over vsock, for stock Linux guests; busybox has none.
//!
//! usage: `vsock-peer echo PORT` listens, says `listening` and gives every byte back, many streams at a time, until a
//! stream's far end stops sending. `vsock-peer exchange CID PORT BYTES` connects, sends BYTES bytes that are told apart by
//! their place while it reads, stops sending, and says `exchanged BYTES` when exactly the same have come back and the far
//! end has stopped too; anything else is exit status 1.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::thread;

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Bytes handed over at a time.
const PIECE: usize = 64 << 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["echo", port] => number(port).and_then(echo_server),
        ["exchange", cid, port, bytes] => exchange_all(cid, port, bytes),
        _ => Err(invalid("usage: vsock-peer echo PORT | exchange CID PORT BYTES")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn echo_server(port: u32) -> io::Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("listening");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = echo(stream) {
                eprintln!("vsock-peer: echo: {error}");
            }
        });
    }
    Ok(())
}

fn echo(mut stream: VsockStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let len = stream.read(&mut piece)?;
        if len == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&piece[..len])?;
    }
}

fn exchange_all(cid: &str, port: &str, bytes: &str) -> io::Result<()> {
    let total: u32 = number(bytes)?;
    let mut reader = VsockStream::connect_with_cid_port(number(cid)?, number(port)?)?;
    let mut writer = reader.try_clone()?;
    let sender = thread::spawn(move || {
        let mut sent = 0;
        while sent < total {
            let piece = pattern(sent, total);
            writer.write_all(&piece)?;
            sent += length(&piece);
        }
        writer.shutdown(Shutdown::Write)
    });
    let mut back = 0;
    let mut piece = vec![0; PIECE];
    loop {
        let len = reader.read(&mut piece)?;
        if len == 0 {
            break;
        }
        let expected = pattern(back, back.saturating_add(length(&piece[..len])));
        if piece[..len] != expected[..] {
            return Err(invalid(&format!("wrong bytes behind byte {back}")));
        }
        back += length(&expected);
    }
    sender.join().map_err(|_| invalid("the sender panicked"))??;
    if back != total {
        return Err(invalid(&format!("{back} of {total} bytes came back")));
    }
    println!("exchanged {back}");
    Ok(())
}

/// The bytes from `from` to `to`, at most [`PIECE`] of them: each follows from its place.
fn pattern(from: u32, to: u32) -> Vec<u8> {
    let places = (from..to).take(PIECE);
    places
        .map(|place| place.wrapping_mul(0x9e37_79b9).to_le_bytes()[3])
        .collect()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn number(text: &str) -> io::Result<u32> {
    text.parse()
        .map_err(|_| invalid(&format!("{text:?} is not a number")))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.to_owned())
}
