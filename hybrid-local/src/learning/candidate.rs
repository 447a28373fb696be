//! The files of a candidate.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hybrid_core::{CandidateFile, FileName, Result};

use crate::files::{io_error, sync_folder};

/// Has files written into the empty folder `scratch/candidate`, whose paths `write` gives. If it fails, nothing is left of them.
pub(crate) fn write_candidate(
    scratch: &Path,
    write: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
) -> Result<Vec<CandidateFile>> {
    let folder = scratch.join("candidate");
    let fail = |error| io_error("write candidate", &folder, error);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(fail)?;
    }
    fs::create_dir_all(&folder).map_err(fail)?;
    let written = write(&folder).and_then(|paths| {
        paths.first().map_or(Ok(()), |path| sync_folder(path))?;
        paths.into_iter().map(file).collect()
    });
    if written.is_err() {
        // What failed first is what is told.
        let _ = fs::remove_dir_all(&folder);
    }
    written
}

fn file(path: PathBuf) -> Result<CandidateFile> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(CandidateFile { name: FileName::new(name)?, path })
}

#[cfg(test)]
mod tests {
    use hybrid_core::Error;

    use super::*;

    #[test]
    fn a_candidate_has_its_own_files_alone_and_none_if_writing_fails() {
        let scratch = tempfile::tempdir().unwrap();
        let write = |name: &'static str| {
            write_candidate(scratch.path(), |folder| {
                fs::write(folder.join(name), "x").unwrap();
                Ok(vec![folder.join(name)])
            })
        };
        write("old").unwrap();
        let files = write("new").unwrap();
        assert_eq!((files.len(), files[0].name.as_str()), (1, "new"));
        assert!(files[0].path.is_file() && !scratch.path().join("candidate/old").exists());
        let failed = write_candidate(scratch.path(), |folder| {
            fs::write(folder.join("half"), "x").unwrap();
            Err(Error::internal("write", "no"))
        });
        assert_eq!(failed.unwrap_err().message(), "no");
        assert!(!scratch.path().join("candidate").exists());
    }
}
