//! The kernel command line, in Linux's syntax (`lib/cmdline.c`, `next_arg`): words separated by blanks, `name` or
//! `name=value`; double quotes keep blanks together and are removed.
//!
//! What this guest understands is in [`Options`]. Unknown words are ignored, as a command line is shared with
//! whatever else reads it; wrong values of known words are reported.

use crate::control_tree::OnlinePolicy;
use crate::layout::NR_KMAPS;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64};
use guest_mm::Memmap;
use guest_mm::compact::Defrag;
use guest_mm::migrate::Method;
use guest_mm::reclaim::Scheme;
use guest_mm::slab::Debugging;

/// Most CPUs this guest can use.
pub const MAX_CPUS: NonZeroU8 = NonZeroU8::new(16).expect("not 0");
/// Most permanent mappings of memory outside the direct map.
pub const MAX_KMAPS: NonZeroU16 = NonZeroU16::new(NR_KMAPS).expect("not 0");

/// One word of the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameter {
    /// What is left of the first `=`, or all of it.
    pub name: String,
    /// What is right of the first `=`, without quotes.
    pub value: Option<String>,
}

/// Splits a command line (or a program's arguments) into its words.
pub fn parameters(line: &str) -> impl Iterator<Item = Parameter> {
    words(line).into_iter().map(|word| match word.split_once('=') {
        Some((name, value)) => Parameter {
            name: name.to_string(),
            value: Some(value.to_string()),
        },
        None => Parameter {
            name: word,
            value: None,
        },
    })
}

/// The words of a line: separated by blanks, except between double quotes, which are removed.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut in_quotes = false;
    for letter in line.chars() {
        match letter {
            '"' => {
                in_quotes = !in_quotes;
                word.get_or_insert_default();
            }
            letter if letter.is_whitespace() && !in_quotes => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// A virtio-mmio device: `virtio_mmio.device=SIZE@BASE:IRQ` (Linux `drivers/virtio/virtio_mmio.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioDevice {
    /// Physical address of its registers.
    pub base: u64,
    /// Bytes of its registers.
    pub size: NonZeroU64,
    /// Global system interrupt.
    pub gsi: u32,
}

/// A swap area: `swap=DISK` or `swap=DISK,pri=N`, as in Linux' fstab.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwapDisk {
    /// The disk (`vdb`).
    pub disk: String,
    /// Areas of a higher priority are filled first, those of the same one in turn. Without one it is lower than that of any area before.
    pub priority: Option<i16>,
}

/// A failure provoked on purpose, so that reporting it can be tested: `panic_test=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PanicTest {
    /// `manager`: the manager panics.
    Manager,
    /// `fault`: the manager touches an address that nothing maps.
    Fault,
    /// `stack`: the manager overflows its stack.
    Stack,
    /// `highmem`: the manager touches memory outside its direct map (`highmem=`) at its physical address.
    HighMem,
}

/// Work for the manager's own mappings, beside the programs: `load=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// `vmalloc`: areas come and go, and their contents are checked.
    Vmalloc,
    /// `kmap`: frames are mapped, looked at, and looked at in another way.
    Kmap,
}

impl Load {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "vmalloc" => Some(Self::Vmalloc),
            "kmap" => Some(Self::Kmap),
            _ => None,
        }
    }
}

/// Everything the command line can say to this guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// `virtio_mmio.device=`, in order.
    pub devices: Vec<MmioDevice>,
    /// `program=`, in order: name and arguments of each program to run.
    pub programs: Vec<Vec<String>>,
    /// `tick_ms=`: how long a process runs before another one has its turn, 1 to 1000 ms. Default 10.
    pub tick_ms: NonZeroU32,
    /// `dirty_expire_cs=`: how old a dirty page of a file may get, in hundredths of a second, 1 to 4294967295. Default 3000, as Linux'
    /// `vm.dirty_expire_centisecs`.
    pub dirty_expire_cs: NonZeroU32,
    /// `dirty_writeback_cs=`: how often old dirty pages are looked for, in hundredths of a second, 1 to 4294967295. Default 500,
    /// as Linux' `vm.dirty_writeback_centisecs`.
    pub dirty_writeback_cs: NonZeroU32,
    /// `loglevel=`: messages of this level and above stay silent, 0 to 8 as in Linux. Default 7 (all but debug).
    pub loglevel: u8,
    /// `fault_around_kib=`: how much one page fault maps where no huge page is possible, 4 to 2048, a power of two.
    /// Default 256: a fault costs several times what mapping a page does.
    pub fault_around_kib: u32,
    /// `highmem=`: boot memory from this physical address on (rounded up to 2 MiB) is not in the direct map. At least 1
    /// byte; the default is no limit. (Linux' parameter of that name gives the size of the rest instead.)
    pub highmem: Option<NonZeroU64>,
    /// `kmap_slots=`: permanent mappings of memory outside the direct map that there can be at a time, 1 to 1024.
    /// Default 1024.
    pub kmap_slots: NonZeroU16,
    /// `load=`, in order.
    pub loads: Vec<Load>,
    /// `scratch=`, in order: disks (`vda`) that are written full and read back. What was on them is lost.
    pub scratch: Vec<String>,
    /// `raw_rate=`, in order: disks (`vda`) that are written and read by their drivers alone, and how long that took is on the console. What
    /// was on them is lost.
    pub raw_rate: Vec<String>,
    /// `memhp_default_state=`: what becomes of a block that is plugged, `online_movable` (the default), `online_kernel` or `offline`, as
    /// Linux' parameter. The control tree can change it.
    pub memhp_default_state: OnlinePolicy,
    /// `memmap_on_memory=`: whether the descriptors of a block that is plugged are in its own first frames (`on`), or in memory that was
    /// there before (`off`, the default). Linux' `memory_hotplug.memmap_on_memory`.
    pub memmap_on_memory: Memmap,
    /// `migrate=`: how the pages of a block that is emptied get off it: `combined` (the default), `swapout` or `remap`. The control
    /// tree can change it.
    pub migrate: Method,
    /// `root=`: the disk (`vda`) with the file system. Default: none.
    pub root: Option<String>,
    /// `rootflags=`: how it is mounted, in words that the file system reads ([`guest_mm::fs::mounted::MountFlags`]). Default: none.
    pub rootflags: String,
    /// `swap=`, in order: disks that are swap areas.
    pub swaps: Vec<SwapDisk>,
    /// `hugepages=`: pages of 2 MiB that are set aside for programs which reserve them. Default 0.
    pub hugepages: u32,
    /// `reclaim=`: in which order pages go: `two-list` (the default) or `launder`.
    pub reclaim: Scheme,
    /// `thp_defrag=`: whether memory is compacted for huge pages by the fault that wants one, and by a daemon (`always`, the
    /// default), by the daemon alone (`defer`), or not at all (`never`): Linux' `transparent_hugepage/defrag`.
    pub thp_defrag: Defrag,
    /// `validate`: after every step of a resize, and before the machine is switched off, the memory manager checks all that it knows, and panics if it is
    /// wrong. Slow.
    pub validate: bool,
    /// `slab_debug`: red zones and poison around and in every object of the manager's heap. Slow.
    pub slab_debug: Debugging,
    /// `slab_debug=test`: the same, and each error that it finds is made once, in caches of their own.
    pub slab_test: bool,
    /// `maxcpus=`: most CPUs that are used, 1 to 16. Default: all there are.
    pub max_cpus: NonZeroU8,
    /// `panic_test=`, and the CPU on which that is to happen: `manager`, `fault@1`.
    pub panic_test: Option<(PanicTest, u8)>,
    /// What was wrong with the command line.
    pub errors: Vec<OptionError>,
}

impl Options {
    /// Reads a command line.
    pub fn parse(line: &str) -> Self {
        let mut options = Self {
            devices: Vec::new(),
            programs: Vec::new(),
            tick_ms: NonZeroU32::MIN.saturating_add(9),
            dirty_expire_cs: NonZeroU32::MIN.saturating_add(2999),
            dirty_writeback_cs: NonZeroU32::MIN.saturating_add(499),
            loglevel: 7,
            fault_around_kib: 256,
            highmem: None,
            kmap_slots: MAX_KMAPS,
            loads: Vec::new(),
            scratch: Vec::new(),
            raw_rate: Vec::new(),
            root: None,
            rootflags: String::new(),
            swaps: Vec::new(),
            memhp_default_state: OnlinePolicy::Movable,
            memmap_on_memory: Memmap::BootMemory,
            migrate: Method::Combined,
            hugepages: 0,
            reclaim: Scheme::TwoList,
            thp_defrag: Defrag::Always,
            validate: false,
            slab_debug: Debugging::Off,
            slab_test: false,
            max_cpus: MAX_CPUS,
            panic_test: None,
            errors: Vec::new(),
        };
        for parameter in parameters(line) {
            let value = parameter.value.as_deref().unwrap_or_default();
            if !options.set(&parameter.name, value) {
                options.errors.push(OptionError {
                    name: parameter.name,
                    value: value.to_string(),
                });
            }
        }
        options.spare_disks();
        options
    }

    /// How often old dirty pages are looked for, and how old they may get, in nanoseconds.
    pub fn dirty_ns(&self) -> (u64, u64) {
        let ns = |centiseconds: NonZeroU32| u64::from(centiseconds.get()) * 10_000_000;
        (ns(self.dirty_writeback_cs), ns(self.dirty_expire_cs))
    }

    /// A disk that is to be kept is no scratch disk, whatever is said of it elsewhere.
    fn spare_disks(&mut self) {
        let is_swap = |name: &String| self.swaps.iter().any(|swap| swap.disk == *name);
        let is_kept = |name: &String| self.root.as_ref() == Some(name) || is_swap(name);
        for (name, disks) in [("scratch", &mut self.scratch), ("raw_rate", &mut self.raw_rate)] {
            let (kept, written): (Vec<String>, Vec<String>) = disks.drain(..).partition(is_kept);
            *disks = written;
            self.errors.extend(kept.into_iter().map(|value| OptionError {
                name: name.to_string(),
                value,
            }));
        }
    }

    /// Returns whether the value is legal for the name; unknown names take any value.
    fn set(&mut self, name: &str, value: &str) -> bool {
        match name {
            "virtio_mmio.device" => add(&mut self.devices, parse_device(value)),
            "program" => {
                let words = words(value);
                add(&mut self.programs, (!words.is_empty()).then_some(words))
            }
            "tick_ms" => {
                let ms = value.parse().ok();
                put(&mut self.tick_ms, ms.filter(|ms: &NonZeroU32| ms.get() <= 1000))
            }
            "dirty_expire_cs" => put(&mut self.dirty_expire_cs, value.parse().ok()),
            "dirty_writeback_cs" => put(&mut self.dirty_writeback_cs, value.parse().ok()),
            "loglevel" => put(&mut self.loglevel, value.parse().ok().filter(|&level| level <= 8)),
            "fault_around_kib" => {
                let is_legal = |&kib: &u32| kib.is_power_of_two() && (4..=2048).contains(&kib);
                put(&mut self.fault_around_kib, value.parse().ok().filter(is_legal))
            }
            "maxcpus" => {
                let cpus = value.parse().ok();
                put(&mut self.max_cpus, cpus.filter(|&cpus| cpus <= MAX_CPUS))
            }
            "highmem" => {
                self.highmem = parse_size(value).and_then(NonZeroU64::new);
                self.highmem.is_some()
            }
            "kmap_slots" => {
                let slots = value.parse().ok();
                put(&mut self.kmap_slots, slots.filter(|&slots| slots <= MAX_KMAPS))
            }
            "load" => add(&mut self.loads, Load::from_name(value)),
            "scratch" => add(&mut self.scratch, parse_disk(value)),
            "raw_rate" => add(&mut self.raw_rate, parse_disk(value)),
            "root" => put(
                &mut self.root,
                Some(parse_disk(value.strip_prefix("/dev/").unwrap_or(value))),
            ),
            "rootflags" => put(&mut self.rootflags, Some(value.to_string())),
            "swap" => add(&mut self.swaps, parse_swap(value)),
            "memhp_default_state" => put(&mut self.memhp_default_state, OnlinePolicy::from_name(value)),
            "memmap_on_memory" => put(&mut self.memmap_on_memory, parse_memmap(value)),
            "migrate" => put(&mut self.migrate, Method::from_name(value)),
            "hugepages" => put(&mut self.hugepages, value.parse().ok()),
            "reclaim" => put(&mut self.reclaim, parse_scheme(value)),
            "thp_defrag" => put(&mut self.thp_defrag, parse_defrag(value)),
            "validate" => {
                self.validate = true;
                value.is_empty()
            }
            "slab_debug" => self.set_slab_debug(value),
            "panic_test" => {
                self.panic_test = parse_panic_test(value);
                self.panic_test.is_some()
            }
            _ => true,
        }
    }
}

/// Stores a value, if there is one.
fn put<T>(place: &mut T, value: Option<T>) -> bool {
    value.map(|value| *place = value).is_some()
}

/// Adds a value, if there is one.
fn add<T>(list: &mut Vec<T>, value: Option<T>) -> bool {
    let before = list.len();
    list.extend(value);
    list.len() > before
}

fn parse_scheme(value: &str) -> Option<Scheme> {
    match value {
        "two-list" => Some(Scheme::TwoList),
        "launder" => Some(Scheme::Launder),
        _ => None,
    }
}

fn parse_defrag(value: &str) -> Option<Defrag> {
    match value {
        "always" => Some(Defrag::Always),
        "defer" => Some(Defrag::Defer),
        "never" => Some(Defrag::Never),
        _ => None,
    }
}

fn parse_memmap(value: &str) -> Option<Memmap> {
    match value {
        "on" => Some(Memmap::OnBlock),
        "off" => Some(Memmap::BootMemory),
        _ => None,
    }
}

/// The name of a disk.
fn parse_disk(value: &str) -> Option<String> {
    let is_disk = matches!(value.as_bytes(), [b'v', b'd', b'a'..=b'z']);
    is_disk.then(|| value.to_string())
}

impl Options {
    fn set_slab_debug(&mut self, value: &str) -> bool {
        self.slab_debug = Debugging::On;
        self.slab_test = value == "test";
        self.slab_test || value.is_empty()
    }
}

/// A word with a value that it cannot have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionError {
    /// Its name.
    pub name: String,
    /// The value.
    pub value: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "command line: {}={} ignored, not a legal value",
            self.name, self.value
        )
    }
}

fn parse_swap(value: &str) -> Option<SwapDisk> {
    let (disk, priority) = match value.split_once(",pri=") {
        Some((disk, priority)) => (disk, Some(priority.parse().ok()?)),
        None => (value, None),
    };
    let disk = parse_disk(disk)?;
    Some(SwapDisk { disk, priority })
}

fn parse_panic_test(text: &str) -> Option<(PanicTest, u8)> {
    let (name, cpu) = text.split_once('@').unwrap_or((text, "0"));
    let test = match name {
        "manager" => PanicTest::Manager,
        "fault" => PanicTest::Fault,
        "stack" => PanicTest::Stack,
        "highmem" => PanicTest::HighMem,
        _ => return None,
    };
    let cpu = cpu.parse().ok().filter(|&cpu: &u8| cpu < MAX_CPUS.get())?;
    Some((test, cpu))
}

fn parse_device(text: &str) -> Option<MmioDevice> {
    let (size, rest) = text.split_once('@')?;
    let mut rest = rest.split(':');
    let base = parse_size(rest.next()?)?;
    let gsi = parse_number(rest.next()?)?;
    let size = NonZeroU64::new(parse_size(size)?)?;
    base.checked_add(size.get())?;
    Some(MmioDevice {
        base,
        size,
        gsi: u32::try_from(gsi).ok()?,
    })
}

/// A number of bytes with an optional suffix K, M, G or T (powers of 1024), as Linux' `memparse`.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    parse_number(number)?.checked_mul(1 << shift)
}

/// A number, decimal or, with `0x` in front, hexadecimal.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
