//! The end of sockets that nobody serves any more, in a directory that others use too.

use std::io;
use std::path::Path;
use tokio::net::UnixStream;

/// Removes sockets whose names begin like this and that nobody serves any more.
pub async fn remove_dead(directory: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(prefix));
        let path = entry.path();
        // Of the runtime, because it does not wait for a server that hangs.
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if ours && UnixStream::connect(&path).await.is_err_and(refused) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_dead_sockets_of_ours_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(path(name)).unwrap();
        let _alive = bind("mvt-00000000-00000001.sock");
        drop(bind("mvt-00000000-00000002.sock"));
        drop(bind("kubelet.sock"));
        remove_dead(dir.path(), "mvt-").await;
        assert!(path("mvt-00000000-00000001.sock").exists());
        assert!(!path("mvt-00000000-00000002.sock").exists());
        assert!(path("kubelet.sock").exists());
    }
}
