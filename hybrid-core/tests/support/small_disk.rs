//! A disk that is really full: a small one in memory, mounted over a folder. The tests of the other crates take this file in too.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Says that a test cannot do its work on this machine. With `HYBRID_NO_SKIPS`, which the checks of the repository set, that is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("HYBRID_NO_SKIPS").is_none(), "a test cannot do its work here: {why}");
    println!("skipped: {why}");
}

/// A small disk over a folder, for as long as this is held.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    folder: PathBuf,
    /// What lets this user mount: nothing for root, `sudo` for whoever needs no password for it.
    by: &'static [&'static str],
}

impl SmallDisk {
    /// A disk of so many mebibytes. `None` where none can be mounted, which is a [skip].
    pub(crate) fn mount(folder: &Path, mebibytes: u32) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder to mount over");
        let mut why = Vec::new();
        for by in [&[][..], &["sudo", "-n"]] {
            let options = format!("size={mebibytes}m,mode=1777");
            let mount = by_way_of(by, "mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output();
            match mount {
                Ok(output) if output.status.success() => return Some(Self { folder: folder.to_owned(), by }),
                other => why.push(other),
            }
        }
        skip(&format!("no small disk can be mounted: {why:?}"));
        None
    }

    /// Makes room.
    #[allow(dead_code, reason = "some tests never make room")]
    pub(crate) fn grow(&self, mebibytes: u32) {
        let options = format!("remount,size={mebibytes}m");
        let grown = by_way_of(self.by, "mount").args(["-o", &options]).arg(&self.folder).status();
        assert!(grown.is_ok_and(|status| status.success()), "the disk does not grow");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = by_way_of(self.by, "umount").arg("-l").arg(&self.folder).status();
    }
}

fn by_way_of(by: &[&str], program: &str) -> Command {
    match by {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        [] => Command::new(program),
    }
}
