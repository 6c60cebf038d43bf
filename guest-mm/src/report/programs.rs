//! The memory of one program, as `/proc/PID/maps` and `/proc/PID/smaps` show it.

use alloc::string::String;
use core::fmt;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::{AreaUse, Backing, MappingId, Mm, Prot, Sharing};
use crate::pfn::{PAGE_SIZE, PAGEBLOCK_SIZE};

/// What a file is called, for those who look at mappings of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileName {
    /// Number of its inode.
    pub inode: u32,
    /// Its path, with ` (deleted)` behind it if there is none any more.
    pub path: String,
}

/// `/proc/PID/maps`: a line an area, lowest address first. Files are what `name_of` says of their mapping; without a name they have the number of their
/// mapping in the place of the inode.
///
/// # Errors
/// Those of the writer, and when there is no such address space.
pub fn maps<F: Frames, M: Mmu>(
    out: &mut impl fmt::Write,
    mm: &Mm<'_, F, M>,
    id: SpaceId,
    name_of: impl Fn(MappingId) -> Option<FileName>,
) -> fmt::Result {
    let areas = mm.area_uses(id).ok_or(fmt::Error)?;
    areas.iter().try_for_each(|area| heading(out, area, &name_of))
}

/// `/proc/PID/smaps`: the same with what each area has in memory.
///
/// # Errors
/// As [`maps`].
pub fn smaps<F: Frames, M: Mmu>(
    out: &mut impl fmt::Write,
    mm: &Mm<'_, F, M>,
    id: SpaceId,
    name_of: impl Fn(MappingId) -> Option<FileName>,
) -> fmt::Result {
    for area in mm.area_uses(id).ok_or(fmt::Error)? {
        heading(out, &area, &name_of)?;
        let page = match area.vma.backing {
            Backing::HugeTlb(_) => PAGEBLOCK_SIZE,
            _ => PAGE_SIZE,
        };
        for (name, bytes) in [
            ("Size:", area.vma.range.bytes()),
            ("KernelPageSize:", page),
            ("MMUPageSize:", page),
            ("Rss:", area.rss),
            ("Pss:", area.pss),
            ("Shared_Clean:", area.shared_clean),
            ("Shared_Dirty:", area.shared_dirty),
            ("Private_Clean:", area.private_clean),
            ("Private_Dirty:", area.private_dirty),
            ("Referenced:", area.referenced),
            ("Anonymous:", area.anonymous),
            ("AnonHugePages:", area.anon_huge),
            ("Shared_Hugetlb:", area.shared_hugetlb),
            ("Private_Hugetlb:", area.private_hugetlb),
            ("Swap:", area.swap),
            ("Locked:", area.locked),
        ] {
            writeln!(out, "{name:<16}{:>8} kB", bytes / 1024)?;
        }
    }
    Ok(())
}

/// `START-END PERMS OFFSET DEV INODE NAME`.
fn heading(
    out: &mut impl fmt::Write,
    area: &AreaUse,
    name_of: &impl Fn(MappingId) -> Option<FileName>,
) -> fmt::Result {
    let right = |right, letter| if area.vma.prot.has(right) { letter } else { '-' };
    let file = area.vma.backing.file();
    let shared = file.is_some_and(|file| file.sharing == Sharing::Shared);
    let (offset, mapping) = area.offset_and_inode();
    let name = file.and_then(|file| name_of(file.mapping));
    let inode = name.as_ref().map_or(mapping, |name| name.inode);
    write!(
        out,
        "{:08x}-{:08x} {}{}{}{} {offset:08x} 00:00 {inode}",
        area.vma.range.start(),
        area.vma.range.end(),
        right(Prot::READ, 'r'),
        right(Prot::WRITE, 'w'),
        right(Prot::EXEC, 'x'),
        if shared { 's' } else { 'p' },
    )?;
    match name.as_ref().map_or(area.name(), |name| name.path.as_str()) {
        "" => writeln!(out),
        name => writeln!(out, " {name}"),
    }
}
