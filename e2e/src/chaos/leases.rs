//! Addresses that a node still leases after the last pod.

use std::fs;
use std::path::Path;

/// Where `host-local` keeps those of the load's network.
const LEASES: &str = "var/lib/cni/networks/chaos-addressed";

/// Where Multus keeps what it needs for the DEL of a sandbox: a file of its name, until that DEL has succeeded.
const SANDBOXES: &str = "var/lib/cni/multus";

/// What is leased on a node without a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leases {
    /// They should have been released.
    pub(super) left: Vec<String>,
    /// Their runtime was killed before it called DEL, and has forgotten the sandbox: nobody will call it any more.
    pub(super) forgotten: usize,
}

/// Reads those of the node with this root directory.
pub(super) fn of(node: &str, root: &Path, runtime_was_killed: bool) -> Leases {
    let mut found = Leases::default();
    for file in fs::read_dir(root.join(LEASES)).into_iter().flatten().flatten() {
        let Some(address) =
            file.file_name().to_str().filter(|name| name.starts_with("192.0.2.")).map(str::to_owned)
        else {
            continue;
        };
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let sandbox = text.lines().next().unwrap_or_default().trim();
        let without_del = !sandbox.is_empty() && root.join(SANDBOXES).join(sandbox).exists();
        if runtime_was_killed && without_del {
            found.forgotten += 1;
        } else {
            found.left.push(format!("{node}: lease of {address} by sandbox {sandbox}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lease_whose_killed_runtime_never_called_del_is_excused() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(of("n1", root.path(), false), Leases::default());
        write(&format!("{LEASES}/last_reserved_ip.0"), "192.0.2.9");
        write(&format!("{LEASES}/192.0.2.7"), "abc\r\nnet1");
        assert_eq!(of("n1", root.path(), true).left, ["n1: lease of 192.0.2.7 by sandbox abc"]);
        write(&format!("{SANDBOXES}/abc"), "{}");
        assert_eq!(of("n1", root.path(), true), Leases { left: Vec::new(), forgotten: 1 });
        assert_eq!(
            of("n1", root.path(), false).left.len(),
            1,
            "a runtime that was not killed calls DEL again"
        );
    }
}
