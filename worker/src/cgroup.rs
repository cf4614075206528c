//! The worker's control group. Where one is delegated to it (systemd's `Delegate=yes`), the worker moves into a leaf of it, so that
//! job hosts can make groups beside that leaf which limit the memory of single jobs: a group that has processes of its own may
//! not hand controllers on. Under systemd it has to be started in the leaf (`DelegateSubgroup=`, since version 254): a service's
//! group that hands controllers on takes no process when the service is started again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::{debug, info};

/// Where control groups of version 2 are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The leaf.
const LEAF: &str = "lrts-worker";

/// Moves this process into the leaf and hands the memory controller on, if that is possible. Else job hosts measure memory by
/// themselves.
pub(crate) fn settle(root: &Path, pid: u32) {
    // Every service's own, from version 232 on.
    let is_service = std::env::var_os("INVOCATION_ID").is_some();
    let settled = fs::read_to_string("/proc/self/cgroup").and_then(|membership| {
        let group = group_of(root, &membership)
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "no control groups of version 2"))?;
        settle_in(&group, pid, is_service)
    });
    match settled {
        Ok(group) => info!(group = %group.display(), "job hosts can limit memory by control groups"),
        Err(error) => debug!(%error, "no control group for jobs; their memory is measured instead"),
    }
}

/// Removes the groups that a dead host has made for its jobs, once they are empty.
pub(crate) fn remove_jobs(root: &Path, host: u32) {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some(group) = group_of(root, &membership) {
        remove_jobs_in(&group, host);
    }
}

fn remove_jobs_in(group: &Path, host: u32) {
    let Some(parent) = group.parent().filter(|_| group.ends_with(LEAF)) else { return };
    let prefix = format!("job-{host}-");
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            // One that has processes or groups of its own stays.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The group of version 2 that a process is in, by its `/proc/PID/cgroup`.
fn group_of(root: &Path, membership: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(root.join(path))
}

/// Returns the group that jobs' groups can be made in.
fn settle_in(group: &Path, pid: u32, is_service: bool) -> io::Result<PathBuf> {
    // Started there already: by systemd's DelegateSubgroup=, or by a worker that was there.
    let is_leaf = group.file_name().is_some_and(|name| name == LEAF);
    if is_service && !is_leaf {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "systemd has not started the worker in a subgroup",
        ));
    }
    let parent = if is_leaf { group.parent().unwrap_or(group) } else { group };
    let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "no memory controller"));
    }
    if !is_leaf {
        let members = fs::read_to_string(parent.join("cgroup.procs"))?;
        if members.split_whitespace().any(|member| member.parse() != Ok(pid)) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the control group has other processes"));
        }
        let leaf = parent.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::write(leaf.join("cgroup.procs"), pid.to_string())?,
        }
    }
    fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
    Ok(parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group with these controllers and members.
    fn group(controllers: &str, members: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(directory.path().join("cgroup.procs"), members).unwrap();
        directory
    }

    fn read(group: &Path, file: &str) -> String {
        fs::read_to_string(group.join(file)).unwrap_or_default()
    }

    #[test]
    fn the_worker_moves_into_a_leaf_and_hands_memory_on() {
        let group = group("cpu memory pids\n", "77\n");
        assert_eq!(settle_in(group.path(), 77, false).unwrap(), group.path());
        assert_eq!(read(group.path(), "lrts-worker/cgroup.procs"), "77");
        assert_eq!(read(group.path(), "cgroup.subtree_control"), "+memory");
    }

    #[test]
    fn a_worker_that_is_in_its_leaf_stays_there() {
        let group = group("memory\n", "");
        let leaf = group.path().join(LEAF);
        fs::create_dir(&leaf).unwrap();
        assert_eq!(settle_in(&leaf, 77, true).unwrap(), group.path());
        assert_eq!(read(group.path(), "cgroup.subtree_control"), "+memory");
        assert!(!leaf.join("cgroup.procs").exists() && !leaf.join(LEAF).exists());
    }

    #[test]
    fn a_service_that_was_not_started_in_a_leaf_could_not_be_started_again() {
        let group = group("memory\n", "77\n");
        assert!(settle_in(group.path(), 77, true).is_err());
        assert!(!group.path().join(LEAF).exists());
        assert!(!group.path().join("cgroup.subtree_control").exists());
    }

    #[test]
    fn empty_groups_of_a_dead_hosts_jobs_go() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["job-7-1", "job-7-2/sub", "job-77-1", "lrts-worker"] {
            fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        remove_jobs_in(&parent.path().join(LEAF), 7);
        let mut left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["job-7-2", "job-77-1", "lrts-worker"]);
        remove_jobs_in(&parent.path().join("other"), 77);
        assert!(parent.path().join("job-77-1").exists());
    }

    #[test]
    fn groups_of_others_and_without_memory_are_left_alone() {
        for (controllers, members) in [("cpu pids\n", "77\n"), ("memory\n", "77\n78\n")] {
            let group = group(controllers, members);
            assert!(settle_in(group.path(), 77, false).is_err());
            assert!(!group.path().join(LEAF).exists());
            assert!(!group.path().join("cgroup.subtree_control").exists());
        }
        assert!(settle_in(Path::new("/no/such/group"), 77, false).is_err());
    }

    #[test]
    fn the_group_is_that_of_version_2() {
        let root = Path::new("/sys/fs/cgroup");
        let hybrid = "12:pids:/x\n0::/system.slice/lrts-worker.service\n";
        assert_eq!(group_of(root, hybrid).unwrap(), root.join("system.slice/lrts-worker.service"));
        assert_eq!(group_of(root, "0::/\n").unwrap(), root.join(""));
        assert_eq!(group_of(root, "1:memory:/x\n"), None);
    }
}
