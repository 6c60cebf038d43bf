//! Frame allocators from outside the repository, as shared libraries: for those that are on no package registry.
//!
//! `BALLAST_BENCH_PEERS` names shared libraries, separated by colons, and each becomes one more peer of the frame rows.
//! A library exports these functions with the C calling convention (`README.md` beside the benches has the C header):
//!
//! | function | what it does |
//! |---|---|
//! | `const char *ballast_peer_name(void)` | its name in the table, never freed |
//! | `void *ballast_peer_new(uint64_t frames, uint32_t cpus)` | a new allocator, all free; never freed |
//! | `uint64_t ballast_peer_get(void *, uint32_t cpu, uint32_t order)` | first frame of a chunk, or `UINT64_MAX` |
//! | `void ballast_peer_put(void *, uint32_t cpu, uint64_t frame, uint32_t order)` | gives it back |
//! | `void ballast_peer_drain(void *, uint32_t cpu)` | gives back what the processor keeps at hand |
//! | `uint32_t ballast_peer_offline(void *, uint64_t frame, uint64_t frames)` | takes free frames out of use; 0 if it cannot |
//! | `uint32_t ballast_peer_online(void *, uint64_t frame, uint64_t frames)` | undoes that |
//!
//! The last two may be missing; then the peer is not in the offline row. Each `cpu` is used by one thread at a time.
//! A call into a library is a call through a pointer, which costs the peer one to two nanoseconds a pair.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::sync::Arc;

use libloading::{Library, Symbol};

use crate::frames::{FrameAllocator, Hand};

const VARIABLE: &str = "BALLAST_BENCH_PEERS";

type New = unsafe extern "C" fn(u64, u32) -> *mut c_void;
type Get = unsafe extern "C" fn(*mut c_void, u32, u32) -> u64;
type Put = unsafe extern "C" fn(*mut c_void, u32, u64, u32);
type Drain = unsafe extern "C" fn(*mut c_void, u32);
type Range = unsafe extern "C" fn(*mut c_void, u64, u64) -> u32;

/// A loaded library.
#[derive(Clone)]
pub(crate) struct Plugin(Arc<Functions>);

struct Functions {
    name: String,
    new: New,
    get: Get,
    put: Put,
    drain: Drain,
    offline_online: Option<(Range, Range)>,
    /// The functions are in it.
    _library: Library,
}

/// What went wrong with a library that was named.
#[derive(Debug)]
pub(crate) struct LoadError {
    path: String,
    cause: libloading::Error,
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{VARIABLE}: {}: {}", self.path, self.cause)
    }
}

impl std::error::Error for LoadError {}

impl Plugin {
    /// The libraries that `BALLAST_BENCH_PEERS` names.
    ///
    /// # Errors
    /// When one cannot be loaded or lacks a function.
    pub(crate) fn from_environment() -> Result<Vec<Self>, LoadError> {
        let paths = std::env::var_os(VARIABLE).unwrap_or_default();
        let paths = std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
        paths.map(|path| Self::load(path.as_os_str())).collect()
    }

    fn load(path: &OsStr) -> Result<Self, LoadError> {
        Functions::load(path)
            .map(|functions| Self(Arc::new(functions)))
            .map_err(|cause| LoadError {
                path: path.to_string_lossy().into_owned(),
                cause,
            })
    }

    /// A new allocator, for taking ranges of it out of use and back. `None` when the library cannot do that.
    pub(crate) fn ranges(&self, nr_frames: usize) -> Option<Ranges> {
        let (offline, online) = self.0.offline_online?;
        Some(Ranges {
            allocator: self.hands(nr_frames, 1).remove(0),
            offline,
            online,
        })
    }
}

impl Functions {
    fn load(path: &OsStr) -> Result<Self, libloading::Error> {
        // SAFETY: whoever names the library vouches for what its initialisers do.
        let library = unsafe { Library::new(path) }?;
        let name = symbol::<unsafe extern "C" fn() -> *const c_char>(&library, c"ballast_peer_name")?;
        // SAFETY: the contract of the function: no arguments.
        let name = unsafe { name() };
        // SAFETY: the contract of the function: a string that is never freed.
        let name = unsafe { CStr::from_ptr(name) };
        let offline = symbol::<Range>(&library, c"ballast_peer_offline").ok();
        let online = symbol::<Range>(&library, c"ballast_peer_online").ok();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            new: symbol(&library, c"ballast_peer_new")?,
            get: symbol(&library, c"ballast_peer_get")?,
            put: symbol(&library, c"ballast_peer_put")?,
            drain: symbol(&library, c"ballast_peer_drain")?,
            offline_online: offline.zip(online),
            _library: library,
        })
    }
}

/// A function of the library, of the type that the table above gives it.
fn symbol<F: Copy>(library: &Library, name: &CStr) -> Result<F, libloading::Error> {
    // SAFETY: whoever names the library vouches for the types.
    let function: Symbol<'_, F> = unsafe { library.get(name) }?;
    Ok(*function)
}

impl FrameAllocator for Plugin {
    type Hand = PluginHand;

    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<PluginHand> {
        let cpus = u32::try_from(nr_hands).expect("a few");
        // SAFETY: the contract of the function: any numbers.
        let allocator = unsafe { (self.0.new)(nr_frames as u64, cpus) };
        assert!(
            !allocator.is_null(),
            "{} cannot manage {nr_frames} frames",
            self.0.name
        );
        let hand = |cpu| PluginHand {
            functions: Arc::clone(&self.0),
            get: self.0.get,
            put: self.0.put,
            allocator,
            cpu,
        };
        (0..cpus).map(hand).collect()
    }
}

/// One processor of an allocator in a library.
pub(crate) struct PluginHand {
    functions: Arc<Functions>,
    get: Get,
    put: Put,
    allocator: *mut c_void,
    cpu: u32,
}

// SAFETY: the library's contract: one allocator serves all processors, each `cpu` one thread at a time.
unsafe impl Send for PluginHand {}

impl Hand for PluginHand {
    fn get(&mut self, order: u32) -> Option<usize> {
        // SAFETY: an allocator of this library, and this thread's processor.
        let frame = unsafe { (self.get)(self.allocator, self.cpu, order) };
        (frame != u64::MAX).then(|| usize::try_from(frame).expect("a number of a frame"))
    }

    fn put(&mut self, frame: usize, order: u32) {
        // SAFETY: an allocator of this library, this thread's processor, and a chunk that `get` returned.
        unsafe { (self.put)(self.allocator, self.cpu, frame as u64, order) };
    }

    fn drain(&mut self) {
        // SAFETY: an allocator of this library, and this thread's processor.
        unsafe { (self.functions.drain)(self.allocator, self.cpu) };
    }
}

/// An allocator in a library whose frames go out of use and back.
pub(crate) struct Ranges {
    allocator: PluginHand,
    offline: Range,
    online: Range,
}

impl Ranges {
    /// Takes frames, all of them free, out of use.
    pub(crate) fn offline(&mut self, frame: usize, nr_frames: usize) {
        // SAFETY: an allocator of this library.
        let done = unsafe { (self.offline)(self.allocator.allocator, frame as u64, nr_frames as u64) };
        assert_ne!(done, 0, "offline of {nr_frames} free frames from {frame}");
    }

    /// Brings them back.
    pub(crate) fn online(&mut self, frame: usize, nr_frames: usize) {
        // SAFETY: an allocator of this library.
        let done = unsafe { (self.online)(self.allocator.allocator, frame as u64, nr_frames as u64) };
        assert_ne!(done, 0, "online of {nr_frames} frames from {frame}");
    }
}
