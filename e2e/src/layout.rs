//! Where everything lives and what it is called: pure names, derived from the checkout and the cluster's name alone.
//!
//! Because every name can be derived, a cluster whose start was killed half way can be taken down without any record.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The tree this program was compiled from.
#[derive(Clone, Debug)]
pub struct Checkout {
    root: PathBuf,
}

impl Checkout {
    /// The checkout of this build.
    pub fn here() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { root: manifest.parent().unwrap_or(manifest).to_path_buf() }
    }

    /// The top of the tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the top.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// All artefacts: nothing is written outside of it.
    pub fn artefacts(&self) -> PathBuf {
        self.root.join("target/e2e")
    }

    /// Programs built from the pinned Go modules.
    pub fn bin(&self) -> PathBuf {
        self.artefacts().join("bin")
    }

    /// Unpacked Debian packages, in the layout of a root file system.
    pub fn debian(&self) -> PathBuf {
        self.artefacts().join("debian/root")
    }

    /// Holds off others who would write the same artefacts, until the file is dropped.
    pub fn lock(&self, what: &str) -> Result<File> {
        let path = self.artefacts().join("locks").join(what);
        write(&path, "")?;
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// Image archives, `<name>.tar`.
    pub fn images(&self) -> PathBuf {
        self.artefacts().join("images")
    }
}

/// The names and paths of one cluster.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The tree that owns it.
    pub checkout: Checkout,
    /// What the user calls it.
    pub name: String,
    /// Unique on the machine: the name and a hash of the checkout's path.
    pub id: String,
}

/// Nodes of a cluster, at most.
pub const MAX_NODES: u8 = 2;

/// The address of the API server on the management network.
pub const API_ADDRESS: &str = "10.77.0.100";
/// Its port, there.
pub const API_PORT: u16 = 6443;
/// Service addresses.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The first of them, the API server's own.
pub const API_SERVICE: &str = "10.96.0.1";
/// Pods of all nodes.
pub const POD_CIDR: &str = "10.78.0.0/16";

impl Layout {
    /// The names of cluster `name`.
    pub fn new(name: &str) -> Result<Self> {
        Self::of(Checkout::here(), name)
    }

    fn of(checkout: Checkout, name: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 24 && name.chars().all(legal) && !name.starts_with('-'),
            "cluster name {name:?}: use 1 to 24 of a-z, 0-9 and -, not starting with -"
        );
        let digest = sha256_hex(checkout.root().as_os_str().as_encoded_bytes());
        Ok(Self { id: format!("{name}-{}", &digest[..6]), name: name.to_owned(), checkout })
    }

    /// The cluster's directory.
    pub fn dir(&self) -> PathBuf {
        self.checkout.artefacts().join("clusters").join(&self.name)
    }

    /// Certificates, keys and tokens.
    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// Logs of its processes.
    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    /// Process identities.
    pub fn run(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The user's way in.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// The options it was started with.
    pub fn state(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// The network namespace called `part` (`sw`, `cp`, `n1`, `n2`).
    pub fn netns(&self, part: &str) -> String {
        format!("{}{part}", self.netns_prefix())
    }

    /// What the names of all its network namespaces start with.
    pub fn netns_prefix(&self) -> String {
        format!("mvt-{}-", self.id)
    }

    /// The cgroup, in every hierarchy, below which node `node` keeps its pods.
    pub fn cgroup(&self, node: &str) -> String {
        self.netns(node)
    }

    /// The names of its nodes, as far as `count` goes.
    pub fn nodes(&self, count: u8) -> Vec<NodeLayout> {
        (1..=count.min(MAX_NODES)).map(|index| NodeLayout { cluster: self.clone(), index }).collect()
    }
}

/// The names, paths and addresses of one node.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    /// The cluster it belongs to.
    pub cluster: Layout,
    /// 1 or 2.
    pub index: u8,
}

impl NodeLayout {
    /// Its name in the API: `n1`.
    pub fn name(&self) -> String {
        format!("n{}", self.index)
    }

    /// What stands behind its private mounts.
    pub fn dir(&self) -> PathBuf {
        self.cluster.dir().join("nodes").join(self.name())
    }

    /// Its address on the management network.
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.index)
    }

    /// Its pods' network.
    pub fn pod_cidr(&self) -> String {
        format!("10.78.{}.0/24", self.index)
    }

    /// Its network namespace.
    pub fn netns(&self) -> String {
        self.cluster.netns(&self.name())
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> String {
        self.cluster.cgroup(&self.name())
    }
}

/// Hex of a SHA-256.
pub fn sha256_hex(data: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, data).as_ref())
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| DIGITS[usize::from(digit)]).collect()
}

/// Writes a file and the directories above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    // Some daemons end when their configuration is written again, even with the same content.
    if fs::read(path).is_ok_and(|old| old == content.as_ref()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

/// Removes a directory or a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_checkouts_give_one_name_two_identities() {
        let a = Layout::of(Checkout { root: "/a".into() }, "demo").unwrap();
        let b = Layout::of(Checkout { root: "/b".into() }, "demo").unwrap();
        assert_ne!(a.id, b.id);
        assert_ne!(a.netns("n1"), b.netns("n1"));
    }

    #[test]
    fn no_cluster_name_is_the_prefix_of_another_ones_namespaces() {
        let checkout = Checkout { root: "/a".into() };
        let a = Layout::of(checkout.clone(), "demo").unwrap();
        let b = Layout::of(checkout, "demo-2").unwrap();
        assert!(!b.netns("n1").starts_with(&a.netns_prefix()));
    }

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for name in ["", "..", "a/b", "Demo", "-x", "a b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
            assert!(Layout::new(name).is_err(), "{name:?}");
        }
    }
}
