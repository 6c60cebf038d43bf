//! The file system of the disk that `root=` names: mounted, and its caches among what reclaim asks.

use super::steps;
use crate::disks;
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::activity::AllCpus;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use crate::machine::object_cache::ObjectCache;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use guest_kernel::drive::Drive;
use guest_mm::Mm;
use guest_mm::disk::{IoError, Request};
use guest_mm::fs::mounted::{File, MountFlags, UnknownFlag};
use guest_mm::fs::pagefs::{FormatError, FsError};
use guest_mm::fs::{Dentry, Keep, Machine, Mounted, Node};
use guest_mm::mempool::ThisCpu;
use guest_mm::reclaim::Shrinker;
use guest_mm::slab::{Cache, IsLeaving, MoveObjects, NoObject};
use guest_sync::{Cpu, SetOnce};

/// Tasks that carry pages between memory and the disk, each one request at a time.
const NR_CARRIERS: usize = 6;

static DENTRIES: ObjectCache<Dentry> = ObjectCache::movable("dentry");
static INODE_OBJECTS: ObjectCache<Node<Arc<File>>> = ObjectCache::movable("inode_cache");

/// The file system of this guest.
pub(crate) type RootFs = Mounted<'static, RootDisk>;

/// What it runs on.
#[derive(Clone, Copy)]
pub(crate) struct RootDisk {
    kernel: &'static Kernel,
    drive: &'static Drive,
}

impl ThisCpu for RootDisk {
    fn this_cpu(&self) -> &Cpu {
        this_cpu()
    }
}

impl<'m> Machine<'m> for RootDisk {
    type Frames = AllFrames;
    type Mmu = AllCpus;
    type Names = &'static ObjectCache<Dentry>;
    type Inodes = &'static ObjectCache<Node<Arc<File>>>;

    fn mm(&self) -> &Mm<'m, AllFrames, AllCpus> {
        self.kernel.memory()
    }

    fn nr_blocks(&self) -> u64 {
        self.drive.nr_blocks()
    }

    fn request(&self, request: Request, keep: Keep) -> impl Future<Output = Result<(), IoError>> {
        self.drive.request_keeping(request, keep)
    }
}

/// The file system, if there is one.
#[derive(Default)]
pub(crate) struct Files {
    root: SetOnce<&'static RootFs>,
}

impl Files {
    /// The file system of `root=`.
    pub(crate) fn root(&self) -> Option<&'static RootFs> {
        self.root.get().copied()
    }
}

/// Why there is no file system.
enum NoRoot {
    Disk,
    ReadOnly,
    /// Whose it is.
    Taken(&'static str),
    Flags(UnknownFlag),
    Fs(FsError),
}

impl fmt::Display for NoRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("there is no such disk"),
            Self::ReadOnly => f.write_str("it can be read only"),
            Self::Taken(owner) => write!(f, "it is in use already, as {owner}"),
            Self::Flags(unknown) => write!(f, "rootflags: {unknown}"),
            Self::Fs(error @ FsError::Format(FormatError::NotPageFs)) => {
                write!(f, "{error}: `ballast disk make` makes one")
            }
            Self::Fs(error @ FsError::Format(_)) => {
                write!(f, "{error}; `ballast disk check` says what else is damaged")
            }
            Self::Fs(error) => error.fmt(f),
        }
    }
}

/// Mounts a disk, as `flags` say (`rootflags=`). What cannot be mounted is reported, and there is no file system then.
pub(crate) async fn mount(kernel: &'static Kernel, disk: &str, flags: &str) {
    match mount_disk(kernel, disk, flags).await {
        Ok(root) => {
            log!(Info, "{disk}: mounted, a file system of {} MiB", root_mib(root));
        }
        Err(error) => log!(Error, "root={disk}: {error}"),
    }
}

fn root_mib(root: &RootFs) -> u64 {
    root.nr_blocks() >> 8
}

async fn mount_disk(kernel: &'static Kernel, disk: &str, flags: &str) -> Result<&'static RootFs, NoRoot> {
    let flags: MountFlags = flags.parse().map_err(NoRoot::Flags)?;
    let (index, drive) = disks::find(kernel, disk).ok_or(NoRoot::Disk)?;
    if drive.is_read_only() {
        return Err(NoRoot::ReadOnly);
    }
    let machine = RootDisk { kernel, drive };
    let mounted = Box::pin(steps(Mounted::mount(machine, &DENTRIES, &INODE_OBJECTS, flags))).await;
    let mounted = mounted.map_err(NoRoot::Fs)?;
    disks::claim(kernel, index, disks::ROOT).map_err(NoRoot::Taken)?;
    let root: &'static RootFs = Box::leak(Box::new(mounted));
    if kernel.files.root.set(root).is_err() || NAMES.0.set(root).is_err() || INODES.0.set(root).is_err() {
        panic!("a second file system: there is one root=");
    }
    for _ in 0..NR_CARRIERS {
        kernel.start_task(this_cpu().id(), steps(root.serve()));
    }
    super::write_back::start(kernel, root);
    Ok(root)
}

/// The cache of names, once there is one, for reclaim.
pub(crate) struct NameShrinker(SetOnce<&'static RootFs>);
/// The cache of inodes, once there is one, for reclaim.
pub(crate) struct InodeShrinker(SetOnce<&'static RootFs>);

pub(crate) static NAMES: NameShrinker = NameShrinker(SetOnce::new());
pub(crate) static INODES: InodeShrinker = InodeShrinker(SetOnce::new());

impl Shrinker for NameShrinker {
    fn name(&self) -> &'static str {
        "dentry"
    }

    fn freeable_pages(&self) -> u64 {
        self.0.get().map_or(0, |root| root.names().freeable_pages())
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        self.0.get().map_or(0, |root| root.names().shrink(cpu, nr_pages))
    }
}

impl Shrinker for InodeShrinker {
    fn name(&self) -> &'static str {
        "inode"
    }

    fn freeable_pages(&self) -> u64 {
        self.0
            .get()
            .map_or(0, |root| root.inode_shrinker().freeable_pages())
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        self.0
            .get()
            .map_or(0, |root| root.inode_shrinker().shrink(cpu, nr_pages))
    }
}

impl MoveObjects for NameShrinker {
    fn cache(&self) -> Option<&Cache> {
        DENTRIES.slab_cache()
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        if let Some(root) = self.0.get() {
            root.names().move_objects(cpu, is_leaving);
        }
        Ok(())
    }
}

impl MoveObjects for InodeShrinker {
    fn cache(&self) -> Option<&Cache> {
        INODE_OBJECTS.slab_cache()
    }

    fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        self.0
            .get()
            .map_or(Ok(()), |root| root.inodes().move_objects(cpu, is_leaving))
    }
}
