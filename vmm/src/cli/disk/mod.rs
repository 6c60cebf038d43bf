//! `ballast disk`: images for the built-in guest, made and looked into from outside: its file system and its swap area.

mod blocks;
mod tree;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use guest_mm::fs::pagefs::{Damage, FsError, Kind, Volume, check, run};
use guest_mm::pfn::PAGE_SIZE;
use guest_mm::swap::AreaHeader;
use serde_json::json;

use super::table::Table;
use super::{Failure, Status, print, print_json};
use crate::boot::built_in;
use crate::spec::{ByteSize, parse_size};
use blocks::{FileBlocks, ImageError};

/// Make disk images for the built-in guest, and look into them
///
/// `make` writes the guest's own small file system (PageFS), `swap` a swap area. The images are sparse files, given to a
/// guest with `ballast run --disk`, which mounts one with `root=vda` on its command line. Looking into an image never changes it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ballast disk make data.img --size 64M --from ./tree
  ballast disk make root.img --size 64M --programs
  ballast disk swap swap.img --size 256M
  ballast disk list data.img /
  ballast disk cat data.img /log/today
  ballast disk check data.img

Exit status of check: 0 the file system is whole, 1 it is not.")]
pub(super) struct Disk {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an image with a file system; an existing file is replaced once the new one is complete
    Make {
        /// File to write
        image: PathBuf,
        /// Size of the file system, rounded down to 4 KiB
        #[arg(long, value_name = "SIZE")]
        size: String,
        /// Directory whose files and directories are copied into it
        #[arg(long, value_name = "DIRECTORY")]
        from: Option<PathBuf>,
        /// Put the built-in guest's programs into its directory /bin
        #[arg(long)]
        programs: bool,
    },
    /// Write the executable with all of the built-in guest's programs; which one it becomes its own name decides
    Programs {
        /// File to write; an existing one is replaced
        file: PathBuf,
    },
    /// Make an image with a swap area; an existing file is replaced once the new one is complete
    Swap {
        /// File to write
        image: PathBuf,
        /// Size of the area, rounded down to 4 KiB
        #[arg(long, value_name = "SIZE")]
        size: String,
    },
    /// List a directory in an image
    List {
        /// Image to look into
        image: PathBuf,
        /// Directory
        #[arg(default_value = "/")]
        path: String,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Write a file in an image to standard output
    Cat {
        /// Image to look into
        image: PathBuf,
        /// File
        path: String,
    },
    /// Read all metadata of an image: checksums, blocks used twice, names without inodes and inodes without names
    Check {
        /// Image to look into
        image: PathBuf,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The image, or a path in it, is not what was asked for.
#[derive(Debug, thiserror::Error)]
enum DiskError {
    #[error("{image:?}: {path}")]
    Inside {
        image: PathBuf,
        path: String,
        source: FsError,
    },
    #[error("{image:?}")]
    Damaged { image: PathBuf, source: Damage },
    #[error("{image:?}")]
    Unreadable { image: PathBuf, source: FsError },
    #[error("a swap area of {0}: it has 2 to 2^32 - 1 blocks of 4096 bytes")]
    SwapSize(ByteSize),
}

impl Disk {
    pub(super) fn run(&self) -> Result<Status, Failure> {
        match &self.what {
            What::Make {
                image,
                size,
                from,
                programs,
            } => make(image, size, from.as_deref(), *programs),
            What::Programs { file } => programs(file),
            What::Swap { image, size } => swap(image, size),
            What::List { image, path, json } => list(image, path, *json),
            What::Cat { image, path } => cat(image, path),
            What::Check { image, json } => report(image, *json),
        }
    }
}

fn make(image: &Path, size: &str, from: Option<&Path>, programs: bool) -> Result<Status, Failure> {
    let size = parse_size(size).map_err(Failure::usage)?;
    blocks::replace(image, |file| {
        let volume = run(Volume::format(FileBlocks::new(file, size)?));
        let mut volume = volume.map_err(|error| ImageError::make(image, error))?;
        if let Some(from) = from {
            tree::copy(from, &mut volume)?;
        }
        if programs {
            let added = run(tree::add_programs(&mut volume, built_in_programs()?));
            added.map_err(|error| ImageError::make(Path::new("/bin"), error))?;
        }
        run(volume.commit()).map_err(|error| ImageError::make(image, error))
    })
    .map_err(Failure::run_time)?;
    Ok(Status::Done)
}

fn programs(file: &Path) -> Result<Status, Failure> {
    blocks::replace(file, |mut to| {
        to.write_all(built_in_programs()?)
            .map_err(|source| ImageError::file(file, source))
    })
    .map_err(Failure::run_time)?;
    Ok(Status::Done)
}

fn built_in_programs() -> Result<&'static [u8], ImageError> {
    built_in::programs().ok_or(ImageError::NoPrograms)
}

fn swap(image: &Path, size: &str) -> Result<Status, Failure> {
    let size = parse_size(size).map_err(Failure::usage)?;
    let nr_blocks = u32::try_from(size / PAGE_SIZE).ok().filter(|blocks| *blocks >= 2);
    let nr_blocks = nr_blocks.ok_or_else(|| Failure::usage(DiskError::SwapSize(ByteSize(size))))?;
    blocks::replace(image, |file| {
        let mut file = FileBlocks::new(file, size)?.into_file();
        file.write_all(&AreaHeader::new(nr_blocks).to_block())
            .map_err(|source| ImageError::file(image, source))
    })
    .map_err(Failure::run_time)?;
    Ok(Status::Done)
}

fn mount(image: &Path) -> Result<Volume<FileBlocks>, Failure> {
    let blocks = FileBlocks::open(image).map_err(Failure::run_time)?;
    run(Volume::mount(blocks)).map_err(|source| {
        let image = image.to_owned();
        Failure::run_time(DiskError::Unreadable { image, source })
    })
}

fn list(image: &Path, path: &str, json: bool) -> Result<Status, Failure> {
    let mut volume = mount(image)?;
    let mut entries = Vec::new();
    let listed = run(async {
        let directory = volume.resolve(path.as_bytes()).await?;
        for record in volume.list(directory).await? {
            let inode = volume.inode(record.inode).await?;
            entries.push((record, inode.kind, inode.size, inode.nr_links));
        }
        Ok(())
    });
    listed.map_err(|source| inside(image, path, source))?;
    entries.sort_by_key(|(record, ..)| record.name);
    if json {
        let values = entries.iter().map(|(record, kind, size, links)| {
            let kind = kind_name(*kind);
            json!({"name": record.name.to_string(), "kind": kind, "size": size, "links": links, "inode": record.inode.number()})
        });
        print_json(&values.collect::<Vec<_>>())?;
        return Ok(Status::Done);
    }
    let mut table = Table::new(&["NAME", "KIND", "SIZE", "LINKS", "INODE"]);
    for (record, kind, size, links) in &entries {
        table.row(vec![
            record.name.to_string(),
            kind_name(*kind).to_owned(),
            ByteSize(*size).to_string(),
            links.to_string(),
            record.inode.number().to_string(),
        ]);
    }
    print(&table.render())?;
    Ok(Status::Done)
}

fn cat(image: &Path, path: &str) -> Result<Status, Failure> {
    let mut volume = mount(image)?;
    let bytes = run(async {
        let file = volume.resolve(path.as_bytes()).await?;
        volume.read_file(file).await
    });
    let bytes = bytes.map_err(|source| inside(image, path, source))?;
    super::print_bytes(&bytes)?;
    Ok(Status::Done)
}

fn report(image: &Path, json: bool) -> Result<Status, Failure> {
    let blocks = FileBlocks::open(image).map_err(Failure::run_time)?;
    let usage = run(check(blocks)).map_err(|source| {
        let image = image.to_owned();
        Failure::run_time(DiskError::Damaged { image, source })
    })?;
    let (used, all) = (u64::from(usage.used_blocks), u64::from(usage.nr_blocks));
    if json {
        print_json(&json!({
            "generation": usage.generation, "files": usage.files, "directories": usage.directories,
            "used_bytes": used * PAGE_SIZE, "size_bytes": all * PAGE_SIZE,
        }))?;
    } else {
        let (used, all) = (ByteSize(used * PAGE_SIZE), ByteSize(all * PAGE_SIZE));
        let (files, directories, generation) = (usage.files, usage.directories, usage.generation);
        let text = format!(
            "whole: {files} files, {directories} directories, {used} of {all} in use, commit {generation}\n"
        );
        print(&text)?;
    }
    Ok(Status::Done)
}

fn inside(image: &Path, path: &str, source: FsError) -> Failure {
    let (image, path) = (image.to_owned(), path.to_owned());
    Failure::run_time(DiskError::Inside { image, path, source })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
    }
}

/// What is in a directory of the host, by name, so that an image depends on nothing else.
fn sorted(directory: &Path) -> std::io::Result<Vec<fs::DirEntry>> {
    let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}
