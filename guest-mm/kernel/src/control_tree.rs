//! The control tree's paths (as Linux' `/sys/devices/system/memory` and `node`): what there is, and what each file means.
//! What is in the files is the kernel's business.
//!
//! ```text
//! memory/block_size_bytes        bytes of a block, in hexadecimal
//! memory/auto_online_blocks      offline, online_movable or online_kernel: what becomes of a block that is plugged
//! memory/migrate_rate_mib        MiB a second that blocks are emptied with; 0 is no limit
//! memory/migrate_method          combined, swapout or remap: how the pages of blocks get off them
//! memory/memmap_on_memory        on or off: whether the descriptors of a block that is plugged are on the block itself
//! memory/poison_limit            failed frames with which a block stays in use (`poison`); one with more goes offline
//! memory/events                  what has happened to blocks and nodes, newest last: NUMBER NAME FROM TO; with /N only what came after N. First of all `missed COUNT events, FIRST to LAST`, if such are not kept
//!                                any more (2048 are), or `restarted NEWEST`, if N is an event of before the guest was started again
//! memory/memoryN/state           unplugged, plugging, offline, going-offline or online; takes what auto_online_blocks takes
//! memory/memoryN/memmap          where its descriptors are while it is in use: boot, or block, which is itself
//! memory/memoryN/{removable,zone,node,phys_addr,used_pages,free_pages,memmap_pages,poisoned_pages}
//! node/{possible,has_memory}     numbers of nodes: all there can be, and those with memory
//! node/nodeN/state               offline (it has no memory) or online; takes what auto_online_blocks takes, for all its plugged blocks in one go
//! node/nodeN/zonelist            the zones that a request near to the node tries, in that order: ZONE@NODE
//! node/nodeN/tasks               its daemons that run
//! node/nodeN/{cpulist,distance,blocks,total_pages,free_pages}
//! devices/DEVICE/dma             where the memory is that the device's driver shares with it; `move` has it be elsewhere. Devices are vda and so on, memory,
//!                                balloon and console
//! ```

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// What becomes of a block that is plugged, and what a block can be asked to be (Linux' words).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnlinePolicy {
    /// It is left alone.
    Offline,
    /// In the removable zone, from which it can be given back.
    #[default]
    Movable,
    /// In the zone of the kernel's own data, part of which may stay on it for good.
    Kernel,
}

impl OnlinePolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Offline, Self::Movable, Self::Kernel];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Movable => "online_movable",
            Self::Kernel => "online_kernel",
        }
    }

    /// The one with that word; `online` is the removable zone.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "online" {
            return Some(Self::Movable);
        }
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// A file of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockFile {
    /// Its state; can be written.
    State,
    /// 1 if nothing on it is known to stay.
    Removable,
    /// The zone it is in.
    Zone,
    /// The node it is near to.
    Node,
    /// Its physical address.
    PhysAddr,
    /// Frames in use.
    UsedPages,
    /// Free frames.
    FreePages,
    /// Where its descriptors are.
    Memmap,
    /// Its own frames that hold them.
    MemmapPages,
    /// Frames that have failed.
    PoisonedPages,
}

/// A file of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeFile {
    /// Whether it has memory; can be written.
    State,
    /// The zones that requests near to it try.
    Zonelist,
    /// Its daemons that run.
    Tasks,
    /// Its CPUs.
    Cpulist,
    /// Distances to all nodes, by number.
    Distance,
    /// Online blocks.
    Blocks,
    /// Frames that the allocator has.
    TotalPages,
    /// Those that are free.
    FreePages,
}

/// A file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum File {
    /// Bytes of a block.
    BlockSize,
    /// What becomes of a block that is plugged.
    AutoOnline,
    /// How fast blocks are emptied.
    MigrateRate,
    /// How the pages of blocks get off them.
    MigrateMethod,
    /// Where the descriptors of blocks that are plugged are to be.
    MemmapOnMemory,
    /// Failed frames with which a block stays in use.
    PoisonLimit,
    /// What has happened to blocks after the event with that number.
    Events(u64),
    /// Nodes that there can be.
    PossibleNodes,
    /// Those with memory.
    NodesWithMemory,
    /// Of a block.
    Block(u32, BlockFile),
    /// Of a node.
    Node(u8, NodeFile),
    /// The memory that a device's driver shares with it.
    DriverMemory(Device),
}

/// A device with a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The disk of that number: 0 is `vda`.
    Disk(u8),
    /// The memory device.
    Memory,
    /// The balloon.
    Balloon,
    /// The console.
    Console,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // More than 26 do not fit into the machine.
            Self::Disk(number) => write!(f, "vd{}", char::from(b'a'.saturating_add(*number))),
            Self::Memory => f.write_str("memory"),
            Self::Balloon => f.write_str("balloon"),
            Self::Console => f.write_str("console"),
        }
    }
}

/// A directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Directory {
    /// The tree.
    Root,
    /// `memory`.
    Memory,
    /// `memory/memoryN`.
    Block(u32),
    /// `node`.
    Nodes,
    /// `node/nodeN`.
    Node(u8),
    /// `devices`.
    Devices,
    /// `devices/NAME`.
    Device(Device),
}

/// What a path leads to. Whether there is a block or node with that number is not known here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A file.
    File(File),
    /// A directory.
    Directory(Directory),
}

/// Nothing is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoEntry {
    /// The path.
    pub path: String,
}

impl fmt::Display for NoEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no {} in the control tree; an empty path lists it",
            self.path
        )
    }
}

impl core::error::Error for NoEntry {}

const MEMORY_FILES: [(&str, File); 7] = [
    ("block_size_bytes", File::BlockSize),
    ("auto_online_blocks", File::AutoOnline),
    ("migrate_rate_mib", File::MigrateRate),
    ("migrate_method", File::MigrateMethod),
    ("memmap_on_memory", File::MemmapOnMemory),
    ("poison_limit", File::PoisonLimit),
    ("events", File::Events(0)),
];

const BLOCK_FILES: [(&str, BlockFile); 10] = [
    ("state", BlockFile::State),
    ("removable", BlockFile::Removable),
    ("zone", BlockFile::Zone),
    ("node", BlockFile::Node),
    ("phys_addr", BlockFile::PhysAddr),
    ("used_pages", BlockFile::UsedPages),
    ("free_pages", BlockFile::FreePages),
    ("memmap", BlockFile::Memmap),
    ("memmap_pages", BlockFile::MemmapPages),
    ("poisoned_pages", BlockFile::PoisonedPages),
];

const NODES_FILES: [(&str, File); 2] = [
    ("possible", File::PossibleNodes),
    ("has_memory", File::NodesWithMemory),
];

const NODE_FILES: [(&str, NodeFile); 8] = [
    ("state", NodeFile::State),
    ("zonelist", NodeFile::Zonelist),
    ("tasks", NodeFile::Tasks),
    ("cpulist", NodeFile::Cpulist),
    ("distance", NodeFile::Distance),
    ("blocks", NodeFile::Blocks),
    ("total_pages", NodeFile::TotalPages),
    ("free_pages", NodeFile::FreePages),
];

const DRIVER_MEMORY: &str = "dma";

impl Directory {
    /// Names of the files in it, in their order. Directories below are the caller's to add.
    pub fn files(self) -> Vec<&'static str> {
        match self {
            Self::Root | Self::Devices => Vec::new(),
            Self::Nodes => NODES_FILES.map(|(name, _)| name).into(),
            Self::Device(_) => [DRIVER_MEMORY].into(),
            Self::Memory => MEMORY_FILES.map(|(name, _)| name).into(),
            Self::Block(_) => BLOCK_FILES.map(|(name, _)| name).into(),
            Self::Node(_) => NODE_FILES.map(|(name, _)| name).into(),
        }
    }
}

/// What is at a path, whose names are between slashes. More slashes, and those at the ends, mean nothing.
///
/// # Errors
/// Nothing can be there.
pub fn find(path: &str) -> Result<Entry, NoEntry> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    lookup(&names).ok_or_else(|| NoEntry { path: path.into() })
}

fn lookup(names: &[&str]) -> Option<Entry> {
    Some(match names {
        [] => Entry::Directory(Directory::Root),
        ["memory"] => Entry::Directory(Directory::Memory),
        ["node"] => Entry::Directory(Directory::Nodes),
        ["memory", "events", after] => Entry::File(File::Events(number(after)?)),
        ["memory", name] => match named(&MEMORY_FILES, name) {
            Some(file) => Entry::File(file),
            None => Entry::Directory(Directory::Block(number(name.strip_prefix("memory")?)?)),
        },
        ["memory", block, name] => {
            let block = number(block.strip_prefix("memory")?)?;
            Entry::File(File::Block(block, named(&BLOCK_FILES, name)?))
        }
        ["node", name] => match named(&NODES_FILES, name) {
            Some(file) => Entry::File(file),
            None => Entry::Directory(Directory::Node(number(name.strip_prefix("node")?)?)),
        },
        ["node", node, name] => {
            let node = number(node.strip_prefix("node")?)?;
            Entry::File(File::Node(node, named(&NODE_FILES, name)?))
        }
        ["devices"] => Entry::Directory(Directory::Devices),
        ["devices", name] => Entry::Directory(Directory::Device(device(name)?)),
        ["devices", name, DRIVER_MEMORY] => Entry::File(File::DriverMemory(device(name)?)),
        _ => return None,
    })
}

/// The device of that name.
fn device(name: &str) -> Option<Device> {
    let others = [Device::Memory, Device::Balloon, Device::Console];
    let mut devices = (0..26).map(Device::Disk).chain(others);
    devices.find(|device| device.to_string() == name)
}

fn named<T: Copy>(files: &[(&str, T)], name: &str) -> Option<T> {
    let mut found = files.iter().filter(|(known, _)| *known == name);
    found.next().map(|&(_, file)| file)
}

/// A decimal number without a sign.
fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_by_the_name_under_which_it_is_listed() {
        let directories = [
            ("memory", Directory::Memory),
            ("memory/memory7", Directory::Block(7)),
            ("node", Directory::Nodes),
            ("node/node1", Directory::Node(1)),
            ("devices/vdc", Directory::Device(Device::Disk(2))),
            ("devices/memory", Directory::Device(Device::Memory)),
            ("devices/balloon", Directory::Device(Device::Balloon)),
            ("devices/console", Directory::Device(Device::Console)),
        ];
        for (path, directory) in directories {
            assert_eq!(find(path), Ok(Entry::Directory(directory)));
            assert!(!directory.files().is_empty());
            for name in directory.files() {
                let found = find(&alloc::format!("/{path}//{name}/"));
                assert!(matches!(found, Ok(Entry::File(_))), "{path}/{name}: {found:?}");
            }
        }
        assert_eq!(find("/"), Ok(Entry::Directory(Directory::Root)));
        assert_eq!(
            find("memory/memory12/state"),
            Ok(Entry::File(File::Block(12, BlockFile::State)))
        );
        assert_eq!(find("memory/events/41"), Ok(Entry::File(File::Events(41))));
    }

    #[test]
    fn what_is_not_there_is_named() {
        for path in [
            "memor",
            "memory/block",
            "memory/memory",
            "memory/memory+1",
            "memory/memory4294967296",
            "memory/memory1/states",
            "memory/memory1/state/now",
            "memory/events/x",
            "node/node256",
            "node/1",
            "devices/vdA/dma",
            "devices/vdaa",
            "devices/consol/dma",
        ] {
            assert_eq!(find(path), Err(NoEntry { path: path.into() }));
        }
    }

    #[test]
    fn policies_are_found_by_their_words() {
        for policy in OnlinePolicy::ALL {
            assert_eq!(OnlinePolicy::from_name(policy.name()), Some(policy));
        }
        assert_eq!(OnlinePolicy::from_name("online"), Some(OnlinePolicy::Movable));
        assert_eq!(OnlinePolicy::from_name("Offline"), None);
    }
}
