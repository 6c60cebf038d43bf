//! Unix sockets as a guest's streams, over real sockets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use devices::vsock::HostStream;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use tempfile::TempDir;

use super::*;

fn key(host_port: u32) -> StreamKey {
    StreamKey {
        host_port,
        guest_port: 5,
    }
}

struct World {
    dir: TempDir,
    changes: Changes,
    door: Door,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::new().unwrap();
        let door = Door::open(&dir.path().join("v"), &changes).unwrap();
        World { dir, changes, door }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    fn host(&self) -> UnixHost {
        UnixHost::new(&self.path(), &self.changes)
    }

    /// The callers that the changes so far bring.
    fn callers(&mut self) -> Vec<Caller> {
        let mut callers = Vec::new();
        loop {
            let changes = self.changes.take().unwrap();
            if changes.is_empty() {
                return callers;
            }
            for change in changes {
                if let Change::Door(number) = change {
                    callers.extend(self.door.look(number));
                }
            }
        }
    }
}

#[test]
fn a_stream_to_a_port_ends_at_the_socket_named_after_it() {
    let world = World::new();
    let listener = UnixListener::bind(world.dir.path().join("v_1024")).unwrap();
    let mut stream = world.host().connect(key(1024)).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    assert_eq!(stream.write(b"ping").unwrap(), 4);
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    let nothing = stream.read(&mut bytes).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    let _ = world.changes.take().unwrap();
    far.write_all(b"pong").unwrap();
    let changes = world.changes.take().unwrap();
    assert!(
        matches!(changes[..], [Change::Stream(of, Readiness { readable: true, hung_up: false, .. })] if of == key(1024)),
        "{changes:?}"
    );
    assert_eq!(stream.read(&mut bytes).unwrap(), 4);
    drop(far);
    let changes = world.changes.take().unwrap();
    assert!(
        matches!(
            changes[..],
            [Change::Stream(
                _,
                Readiness {
                    readable: true,
                    hung_up: true,
                    ..
                }
            )]
        ),
        "{changes:?}"
    );
}

#[test]
fn a_port_where_nobody_listens_is_refused_and_a_full_queue_does_not_wait() {
    let world = World::new();
    let mut host = world.host();
    assert!(host.connect(key(7)).is_err());
    assert!(host.connect(key(u32::MAX)).is_err());
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(
        &listener,
        &SocketAddrUnix::new(world.dir.path().join("v_8")).unwrap(),
    )
    .unwrap();
    listen(&listener, 1).unwrap();
    let mut streams = Vec::new();
    let full = (0..20).find_map(|_| host.connect(key(8)).map(|stream| streams.push(stream)).err());
    let full = full.expect("the queue of a listener that takes nobody is full some time");
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_caller_is_known_by_its_line_and_what_follows_is_the_guests() {
    let mut world = World::new();
    let mut program = UnixStream::connect(world.path()).unwrap();
    assert!(world.callers().is_empty());
    program.write_all(b"CONN").unwrap();
    assert!(world.callers().is_empty());
    program.write_all(b"ECT 52\nearly").unwrap();
    let caller = world.callers().pop().unwrap();
    assert_eq!(caller.port, 52);
    let mut stream = caller.into_stream(key(1 << 30)).unwrap();
    stream.accepted(key(1 << 30)).unwrap();
    let mut answer = [0; 14];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1073741824\n");
    let mut bytes = [0; 16];
    let len = stream.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"early");
}

#[test]
fn a_caller_that_says_something_else_or_goes_is_dropped() {
    let mut world = World::new();
    let long = [b'x'; 100];
    for wrong in [&b"HELLO\n"[..], b"CONNECT port\n", &long] {
        let mut program = UnixStream::connect(world.path()).unwrap();
        program.write_all(wrong).unwrap();
        assert!(world.callers().is_empty());
        // What it wrote may be unread: the end is an error then.
        assert!(matches!(program.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
    drop(UnixStream::connect(world.path()).unwrap());
    assert!(world.callers().is_empty());
    assert!(world.door.callers.is_empty());
}

#[test]
fn callers_that_say_nothing_are_bounded() {
    let mut world = World::new();
    let mut silent: Vec<UnixStream> = (0..70)
        .map(|_| UnixStream::connect(world.path()).unwrap())
        .collect();
    assert!(world.callers().is_empty());
    assert_eq!(world.door.callers.len(), 64);
    assert_eq!(
        silent[0].read(&mut [0; 1]).unwrap(),
        0,
        "the first has been shown out"
    );
    silent[69].write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(world.callers().len(), 1);
}

#[test]
fn the_socket_goes_with_the_door_and_one_left_behind_is_replaced() {
    let world = World::new();
    let path = world.path();
    assert_eq!(
        Door::open(&path, &world.changes).unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    drop(world.door);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener that is dropped leaves its file");
    let door = Door::open(&path, &world.changes).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "somebody else's").unwrap();
    drop(door);
    assert!(path.exists(), "it is not ours any more");
    assert!(
        Door::open(&path, &world.changes).is_err(),
        "a file is nobody's socket"
    );
}
