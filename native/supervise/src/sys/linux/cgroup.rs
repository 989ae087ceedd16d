//! A cgroup v2 for one tree, below the helper's own. cgroups(7); `cgroup.kill` since Linux 5.14
//!
//! Named `stdio-LAUNCHER-ROOT`, so that the launcher finds those of its dead supervisors, and the next
//! launcher those of a dead one. `CLONE_INTO_CGROUP` is not used: Linux 6.18 kills a child at its birth
//! if either cgroup ever was killed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::unistd::Pid;

const PREFIX: &str = "stdio-";

pub struct Cgroup {
    path: PathBuf,
    kill: File,
}

impl Cgroup {
    /// Of a root. Any error means that there cannot be one here.
    pub fn create(launcher: Pid, root: u64) -> Result<Self, Errno> {
        let path = path(launcher, root).ok_or(Errno::ENOTSUP)?;
        fs::create_dir(&path).map_err(errno)?;
        let opened = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.kill"))
            .map_err(errno)
            // Only one who may move processes into it has any use of it.
            .and_then(|kill| can_write(&path.join("cgroup.procs")).map(|()| kill));
        match opened {
            Ok(kill) => Ok(Self { path, kill }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// A process, and with it all that it will fork.
    pub fn enter(&self, pid: Pid) -> Result<(), Errno> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).map_err(errno)
    }

    /// SIGKILLs all that is in it, and what is being forked in it.
    pub fn kill(&self) {
        let _ = (&self.kill).write_all(b"1");
    }

    /// What `kill` writes to. Its holder needs no privilege.
    pub fn kill_descriptor(&self) -> BorrowedFd<'_> {
        self.kill.as_fd()
    }

    /// True once it is gone, which it can be when nothing is in it any more.
    pub fn remove(&self) -> bool {
        remove(&self.path)
    }
}

/// Ends what a dead supervisor had in its cgroup; true once there is none (any more).
pub fn end_cgroup_of(launcher: Pid, root: u64) -> bool {
    let Some(path) = path(launcher, root) else {
        return true;
    };
    let _ = fs::write(path.join("cgroup.kill"), "1");
    remove(&path)
}

/// Removes those that a launcher left which was killed together with its supervisors: the BEAM
/// has ended what was in them. Those of living launchers, of another BEAM perhaps, are theirs.
pub fn remove_stale_cgroups() {
    let entries = home().and_then(|home| fs::read_dir(home).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let launcher = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|ids| ids.split_once('-'))
            .and_then(|(launcher, _)| launcher.parse::<u32>().ok());
        if launcher.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn path(launcher: Pid, root: u64) -> Option<PathBuf> {
    Some(home()?.join(format!("{PREFIX}{launcher}-{root}")))
}

/// The cgroup of this process, as a directory.
fn home() -> Option<&'static Path> {
    static HOME: OnceLock<Option<PathBuf>> = OnceLock::new();
    HOME.get_or_init(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        mounts.lines().find_map(|line| directory(line, own))
    })
    .as_deref()
}

/// proc_pid_mountinfo(5): `ID PARENT DEVICE ROOT MOUNTPOINT … - TYPE SOURCE …`, with octal escapes.
fn directory(mount: &str, own: &str) -> Option<PathBuf> {
    let (left, right) = mount.split_once(" - ")?;
    if !right.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = left.split_ascii_whitespace().skip(3);
    let (root, mountpoint) = (fields.next()?, fields.next()?);
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(Path::new(&unescape(mountpoint)).join(below))
}

fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

/// `ENOENT` counts as removed.
fn remove(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn can_write(path: &Path) -> Result<(), Errno> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .map(drop)
        .map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_found_through_any_mount() {
        let line = |root: &str, place: &str| {
            format!("41 31 0:38 {root} {place} rw,relatime shared:9 - cgroup2 cgroup2 rw")
        };
        let found = |root, place, own| directory(&line(root, place), own);
        let path = |path| Some(PathBuf::from(path));
        assert_eq!(found("/", "/sys/fs/cgroup", "/"), path("/sys/fs/cgroup/"));
        assert_eq!(
            found("/", "/sys/fs/cgroup", "/user.slice/a b"),
            path("/sys/fs/cgroup/user.slice/a b")
        );
        assert_eq!(found("/box", "/c", "/box/x"), path("/c/x"));
        assert_eq!(found("/", "/a\\040b", "/x"), path("/a b/x"));
        assert_eq!(found("/other", "/c", "/box"), None);
        assert_eq!(directory("1 2 0:3 / /proc rw - proc proc rw", "/"), None);
    }
}
