//! A directory of the host, copied into a file system.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use guest_mm::fs::pagefs::{Blocks, FsError, InodeNr, Kind, Name, Volume, run};

use super::blocks::{FileBlocks, ImageError};
use super::sorted;

/// Copies what is in the directory `from` into the root directory.
pub(super) fn copy(from: &Path, volume: &mut Volume<FileBlocks>) -> Result<(), ImageError> {
    copy_into(from, volume, InodeNr::ROOT)
}

fn copy_into(from: &Path, volume: &mut Volume<FileBlocks>, to: InodeNr) -> Result<(), ImageError> {
    let entries = sorted(from).map_err(|source| ImageError::file(from, source))?;
    for entry in entries {
        let path = entry.path();
        let host = |source| ImageError::file(&path, source);
        let inside = |source: FsError| ImageError::make(&path, source);
        let name = Name::new(entry.file_name().as_bytes()).map_err(|error| inside(error.into()))?;
        let kind = entry.file_type().map_err(host)?;
        if kind.is_dir() {
            let directory = run(volume.create(to, &name, Kind::Directory)).map_err(inside)?;
            copy_into(&path, volume, directory)?;
        } else if kind.is_file() {
            let bytes = fs::read(&path).map_err(host)?;
            let file = run(volume.create(to, &name, Kind::File)).map_err(inside)?;
            run(volume.write_file(file, &bytes)).map_err(inside)?;
        } else {
            return Err(ImageError::Special { path });
        }
    }
    Ok(())
}

/// Puts the executable with all programs into `/bin`, under the name of each: one file with many names.
pub(super) async fn add_programs<B: Blocks>(
    volume: &mut Volume<B>,
    executable: &[u8],
) -> Result<(), FsError> {
    let bin = Name::new(b"bin")?;
    let directory = match volume.lookup(InodeNr::ROOT, &bin).await {
        Err(FsError::NotFound) => volume.create(InodeNr::ROOT, &bin, Kind::Directory).await?,
        there => there?,
    };
    let mut file = None;
    for name in guest_programs::NAMES {
        let name = Name::new(name.as_bytes())?;
        match file {
            Some(file) => volume.link(directory, &name, file).await?,
            None => {
                let new = volume.create(directory, &name, Kind::File).await?;
                volume.write_file(new, executable).await?;
                file = Some(new);
            }
        }
    }
    Ok(())
}
