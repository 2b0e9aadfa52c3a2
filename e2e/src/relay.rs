//! The only door to a local cluster: a process that listens on 127.0.0.1 of the machine and connects to the API server
//! inside the cluster's network namespace.

use std::fs::File;
use std::io::copy;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::layout::{API_PORT, Layout};
use crate::process::Processes;
use crate::{layout, namespaces, wait};

/// Its name among the cluster's daemons.
pub const DAEMON: &str = "relay";

/// Starts the relay of a cluster, unless it runs, and gives the port. It asks for the port it had before, so that a
/// kubeconfig file in somebody's shell stays valid.
pub fn ensure(program: &Path, cluster: &Layout, processes: &Processes) -> Result<u16> {
    let file = cluster.dir().join("relay.port");
    let known = read_port(&file);
    if processes.pid(DAEMON).is_some()
        && let Some(port) = known
    {
        return Ok(port);
    }
    layout::remove(&file)?;
    let mut command = Command::new(program);
    command
        .arg(DAEMON)
        .arg(namespaces::path(&cluster.netns("cp")))
        .arg(&file)
        .arg(known.unwrap_or(0).to_string());
    processes.start(DAEMON, &command)?;
    wait::until("the relay to the API server", Duration::from_secs(5), || {
        processes.expect_running(DAEMON)?;
        Ok(read_port(&file))
    })
}

fn read_port(file: &Path) -> Option<u16> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Whether somebody listens behind the relay: it closes a connection that it cannot pass on, and a server waits for its
/// client to speak first.
pub fn open(port: u16) -> bool {
    use std::io::Read as _;
    let Ok(mut probe) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return false };
    if probe.set_read_timeout(Some(Duration::from_millis(50))).is_err() {
        return false;
    }
    matches!(probe.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The relay itself: listens, enters the namespace, writes its port to `file`, serves until it is killed.
pub fn serve(netns: &Path, file: &PathBuf, wanted: u16) -> Result<()> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = listen(wanted).or_else(|_| listen(0)).context("listen on 127.0.0.1")?;
    // Sockets belong to the namespace in which they were made: the listener stays outside, what follows is inside.
    let namespace = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {}", netns.display()))?;
    let part = file.with_extension("part");
    layout::write(&part, format!("{}\n", listener.local_addr()?.port()))?;
    std::fs::rename(&part, file).with_context(|| format!("write {}", file.display()))?;
    for client in listener.incoming().flatten() {
        // One refused or broken connection is the client's affair.
        thread::spawn(move || relay(&client));
    }
    Ok(())
}

fn relay(client: &TcpStream) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, API_PORT)) else { return };
    thread::scope(|scope| {
        scope.spawn(|| pump(client, &server));
        pump(&server, client);
    });
}

fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = to.set_nodelay(true);
    let _ = copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
