//! Whether everybody on this machine can read a file.
//!
//! Invariant: it says yes only where a `chmod` from here would help. It must not know what the file holds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;

const OTHERS_READ: u32 = 0o004;
const OTHERS_ENTER: u32 = 0o001;

/// Warns where every user of this machine can read a file that holds a secret.
pub(crate) fn warn(file: &Path) {
    if is_open_to_all(file) {
        tracing::warn!(
            file = %file.display(),
            fix = format!("chmod o-r {}", file.display()),
            "every user of this machine can read the file with the secret"
        );
    }
}

/// Whether others than its owner and group can read the file.
///
/// The group is passed over: a Kubernetes Secret belongs to root and is readable by the pod's group, which is how the
/// exporter's user comes to read it. So is a read-only mount, as which containers get their secrets, often readable by
/// all: who else could read there is settled outside of the container, and its mode cannot be changed from inside.
fn is_open_to_all(file: &Path) -> bool {
    // Where the file really is: the modes of a symbolic link and of its directory say nothing.
    let Ok(path) = fs::canonicalize(file) else {
        return false;
    };
    let allows = |path: &Path, bit| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bit != 0);
    allows(&path, OTHERS_READ)
        && path.ancestors().skip(1).all(|directory| allows(directory, OTHERS_ENTER))
        && !is_mounted_read_only(&path)
}

fn is_mounted_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_file_is_open_where_others_can_reach_and_read_it() {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let file = directory.path().join("key");
        fs::write(&file, "hush").unwrap();
        let open = |directory_mode, mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(directory_mode)).unwrap();
            is_open_to_all(&file)
        };
        assert!(open(0o755, 0o644));
        assert!(open(0o711, 0o604), "who knows the name need not list the directory");
        assert!(!open(0o700, 0o644), "others cannot enter the directory");
        assert!(!open(0o755, 0o640), "the group is meant to read it");
        assert!(!open(0o755, 0o600));
        assert!(!is_open_to_all(&directory.path().join("gone")));
    }

    #[test]
    fn a_link_is_as_open_as_what_it_leads_to() {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (file, link) = (directory.path().join("key"), directory.path().join("link"));
        fs::write(&file, "hush").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(!is_open_to_all(&link));
    }

    /// The fifth and sixth words of a line are the mount point and its options (proc(5)). Of two mounts on one place the
    /// later hides the other.
    #[test]
    fn a_mount_is_read_only_where_the_kernel_lists_it_so() {
        let list = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let words = list.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mounts: BTreeMap<_, _> = words.map(|words| (words[4].to_owned(), words[5].to_owned())).collect();
        for (point, options) in mounts.iter().filter(|(point, _)| fs::metadata(point).is_ok()) {
            let is_listed = options.split(',').any(|option| option == "ro");
            assert_eq!(is_mounted_read_only(Path::new(point)), is_listed, "{point} {options}");
        }
        assert!(!is_mounted_read_only(Path::new("/gone")));
    }
}
