//! Memory limits by the kernel, where the worker has a cgroup (version 2) of its own.
//!
//! Such a cgroup must have no processes beside its children's, so the worker's daemon moves into a leaf of it,
//! [`LEAF`], where its hosts start too, and jobs get cgroups beside that leaf. Anywhere else there are none, and the host
//! watches memory itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the cgroup that a worker's daemon and hosts are in.
const LEAF: &str = "lrts-worker";

/// Where cgroups are.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup in which jobs' are made.
#[derive(Debug)]
pub(super) struct Cgroups {
    parent: PathBuf,
}

impl Cgroups {
    /// Those of this process, from what `/proc/self/cgroup` says; none where it can't make any that limit memory.
    pub(super) fn find(root: &Path, own: &str) -> Option<Self> {
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let own = root.join(own);
        let parent = own.parent().filter(|_| own.ends_with(LEAF) && own.is_dir())?.to_owned();
        let controllers = fs::read_to_string(parent.join("cgroup.subtree_control")).ok()?;
        let writable = nix::unistd::access(&parent, nix::unistd::AccessFlags::W_OK).is_ok();
        (writable && controllers.split_ascii_whitespace().any(|controller| controller == "memory"))
            .then_some(Self { parent })
    }

    /// Removes what hosts have left behind that were killed: names begin with the host's process id. A group that has
    /// processes stays, by the kernel's rule.
    pub(super) fn remove_leftovers(&self, is_host: impl Fn(i32) -> bool) {
        for entry in fs::read_dir(&self.parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let host = name.to_str().and_then(|name| name.strip_prefix("job-")?.split_once('-'));
            if host.is_some_and(|(host, _)| host.parse().is_ok_and(|host| !is_host(host))) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// A cgroup for one job. An empty one of that name is a leftover, and is replaced.
    ///
    /// # Errors
    ///
    /// Those of `mkdir(2)`, `rmdir(2)` and `write(2)`.
    pub(super) fn create(&self, name: &str, memory_limit: u64) -> io::Result<JobCgroup> {
        let path = self.parent.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir(&path).and_then(|()| fs::create_dir(&path))?;
            }
            made => made?,
        }
        let cgroup = JobCgroup { path, memory_limit };
        cgroup.write("memory.max", &memory_limit.to_string())?;
        cgroup.write("memory.oom.group", "1")?;
        // Missing where the machine has no swap.
        let _ = cgroup.write("memory.swap.max", "0");
        Ok(cgroup)
    }
}

/// A job's cgroup, removed when it is dropped, unless a process in it can't be killed.
#[derive(Debug)]
pub(super) struct JobCgroup {
    path: PathBuf,
    memory_limit: u64,
}

impl JobCgroup {
    /// What a process writes "0" into to be in it.
    pub(super) fn entrance(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The limit.
    pub(super) fn memory_limit(&self) -> u64 {
        self.memory_limit
    }

    /// The most memory that its processes took, in bytes; its limit where the kernel doesn't say.
    pub(super) fn peak_memory_bytes(&self) -> u64 {
        let peak = fs::read_to_string(self.path.join("memory.peak")).unwrap_or_default();
        peak.trim().parse().unwrap_or(self.memory_limit)
    }

    /// Whether the kernel has killed its processes for their memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(name), value)
    }
}

impl Drop for JobCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// Moves the calling process into a cgroup.
///
/// # Errors
///
/// Those of `open(2)` and `write(2)`.
pub(super) fn enter(entrance: &Path) -> io::Result<()> {
    fs::write(entrance, "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as the kernel shows it, of which `mkdir` makes no files.
    fn tree(controllers: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("machine/service/lrts-worker")).unwrap();
        fs::write(root.path().join("machine/service/cgroup.subtree_control"), controllers).unwrap();
        root
    }

    #[test]
    fn cgroups_are_used_only_where_the_worker_has_prepared_them() {
        let root = tree("cpu memory pids\n");
        let find = |own: &str| Cgroups::find(root.path(), own).map(|cgroups| cgroups.parent);
        let parent = root.path().join("machine/service");
        assert_eq!(find("9:cpu:/\n0::/machine/service/lrts-worker\n"), Some(parent));
        for own in ["", "4:memory:/machine/service/lrts-worker", "0::/", "0::/machine/service"] {
            assert_eq!(find(own), None, "{own}");
        }
        fs::create_dir(root.path().join("machine/service/my-lrts-worker")).unwrap();
        assert_eq!(find("0::/machine/service/my-lrts-worker"), None);
        assert_eq!(find("0::/machine/elsewhere/lrts-worker"), None);
        let without = tree("cpu pids\n");
        assert!(Cgroups::find(without.path(), "0::/machine/service/lrts-worker").is_none());
    }

    #[test]
    fn a_jobs_cgroup_has_its_limit_and_tells_what_happened() {
        let root = tree("memory\n");
        let cgroups = Cgroups::find(root.path(), "0::/machine/service/lrts-worker").unwrap();
        let path = root.path().join("machine/service/job-1");
        let cgroup = cgroups.create("job-1", 5 << 20).unwrap();
        enter(&cgroup.entrance()).unwrap();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        let names = ["memory.max", "memory.oom.group", "memory.swap.max", "cgroup.procs"];
        assert_eq!(names.map(read), ["5242880", "1", "0", "0"]);
        assert!(cgroups.create("job-1", 5 << 20).is_err());

        assert_eq!((cgroup.ran_out_of_memory(), cgroup.peak_memory_bytes()), (false, 5 << 20));
        fs::write(path.join("memory.events"), "low 0\noom 3\noom_kill 0\n").unwrap();
        assert!(!cgroup.ran_out_of_memory());
        fs::write(path.join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        fs::write(path.join("memory.peak"), "5242000\n").unwrap();
        assert_eq!((cgroup.ran_out_of_memory(), cgroup.peak_memory_bytes()), (true, 5_242_000));

        // Removed with all that the kernel had made, which a real directory doesn't allow.
        for entry in fs::read_dir(&path).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        drop(cgroup);
        assert!(!path.exists());
    }

    #[test]
    fn what_killed_hosts_have_left_is_removed() {
        let root = tree("memory\n");
        let cgroups = Cgroups::find(root.path(), "0::/machine/service/lrts-worker").unwrap();
        let service = root.path().join("machine/service");
        for name in ["job-7-1", "job-8-1", "job-7-2/full", "job-x-1", "other-7-1"] {
            fs::create_dir_all(service.join(name)).unwrap();
        }
        cgroups.remove_leftovers(|pid| pid == 8);
        let left =
            fs::read_dir(&service).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<String> = left.filter(|name| name != "cgroup.subtree_control").collect();
        left.sort_unstable();
        assert_eq!(left, ["job-7-2", "job-8-1", "job-x-1", "lrts-worker", "other-7-1"]);

        assert!(cgroups.create("job-7-2", 1).is_err());
        assert!(cgroups.create("job-8-1", 1).is_ok());
    }
}
