//! What a host's record said that can't be read, by the account of the host itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lrts_core::spec::BundleRef;
use tracing::{info, warn};

use super::HostNumber;
use super::adopt::{HOLDS_SINCE, PAUSE, TRIES};
use super::introduce::{Introduction, connect, introduce};
use super::process::Process;
use super::record::HostRecord;
use super::supervise::Surroundings;

/// Asks whoever listens at the host's socket who it is; none if nobody does, or if its program isn't known. The connection is
/// closed again: the host waits for the one that adopts it.
pub(super) async fn identify(
    number: HostNumber,
    around: &Surroundings,
    installed: &BTreeMap<String, PathBuf>,
) -> Option<HostRecord> {
    let path = around.state.host_socket(number);
    for _ in 0..TRIES {
        let socket = connect(&path).await.ok()?;
        match introduce(socket, &path, HOLDS_SINCE, around.orphan_grace).await {
            Ok(introduced) => return describe(introduced.pid, around, installed),
            Err(Introduction::Broken) => tokio::time::sleep(PAUSE).await,
            Err(Introduction::Wrong(reason)) => {
                warn!(number, reason, "job host without a record can't be adopted");
                return None;
            }
        }
    }
    None
}

fn describe(pid: u32, around: &Surroundings, installed: &BTreeMap<String, PathBuf>) -> Option<HostRecord> {
    let process = Process::of(pid)?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let Some(bundle) = bundle_of(&program, &around.state.bundles(), installed) else {
        warn!(pid, program = %program.display(), "job host without a record runs an unknown program and isn't adopted");
        return None;
    };
    info!(pid, ?bundle, "job host without a record found");
    Some(HostRecord { bundle, process, boot_id: around.boot_id.clone() })
}

fn bundle_of(program: &Path, bundles: &Path, installed: &BTreeMap<String, PathBuf>) -> Option<BundleRef> {
    if program.parent() == Some(bundles) {
        return Some(BundleRef::Shipped(program.file_name()?.to_str()?.parse().ok()?));
    }
    let is_it = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == program);
    let (name, _) = installed.iter().find(|(_, path)| is_it(path))?;
    Some(BundleRef::Installed(name.clone()))
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::BundleDigest;

    use super::*;

    #[test]
    fn programs_are_known_by_where_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let bundles = fs::canonicalize(directory.path()).unwrap();
        let program = bundles.join("program");
        fs::write(&program, "").unwrap();
        std::os::unix::fs::symlink(&program, bundles.join("link")).unwrap();
        let installed = BTreeMap::from([("name".to_owned(), bundles.join("link"))]);
        let digest = BundleDigest([7; 32]);
        let shipped = bundle_of(&bundles.join(digest.to_string()), &bundles, &installed);
        assert_eq!(shipped, Some(BundleRef::Shipped(digest)));
        let elsewhere = Path::new("/elsewhere");
        assert_eq!(bundle_of(&program, elsewhere, &installed), Some(BundleRef::Installed("name".to_owned())));
        assert_eq!(bundle_of(&elsewhere.join("program"), &bundles, &installed), None);
    }
}
