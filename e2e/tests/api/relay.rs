//! A door to the API server that can be cut, or lead nowhere without anybody being told.

use anyhow::{Context as _, Result};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: they are passed on.
    None,
    /// They are closed, new ones at once.
    Cut,
    /// What is sent is taken and never arrives, and nobody closes anything. Such a connection stays lost.
    Swallow,
}

/// A listener on loopback that passes connections on. Ends, with all its connections, when dropped.
pub(crate) struct Relay {
    pub(crate) port: u16,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    fault: Fault,
    ended: bool,
    connections: Vec<Connection>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    lost: Arc<AtomicBool>,
}

impl Relay {
    /// Listens on a port of its own and connects to this one.
    pub(crate) fn new(to: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let port = listener.local_addr()?.port();
        let shared = Shared { fault: Fault::None, ended: false, connections: Vec::new() };
        let shared = Arc::new(Mutex::new(shared));
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if lock(&serving).ended {
                    return;
                }
                // A connection that cannot be passed on is closed, as one to a server that is away.
                let _ = pass_on(client, to, &serving);
            }
        });
        Ok(Self { port, shared })
    }

    /// From now on this becomes of connections, those that there are among them.
    pub(crate) fn set(&self, fault: Fault) {
        let mut shared = lock(&self.shared);
        shared.fault = fault;
        match fault {
            Fault::None => {}
            Fault::Cut => shared.connections.drain(..).for_each(Connection::close),
            Fault::Swallow => {
                shared
                    .connections
                    .iter()
                    .for_each(|connection| connection.lost.store(true, Ordering::SeqCst));
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set(Fault::Cut);
        lock(&self.shared).ended = true;
        // Wakes the listener.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Connection {
    fn close(self) {
        for end in [self.client, self.server] {
            // It may have ended by itself.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn pass_on(client: TcpStream, to: u16, shared: &Mutex<Shared>) -> Result<()> {
    let mut shared = lock(shared);
    if shared.fault == Fault::Cut {
        return Ok(());
    }
    let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to)))?;
    let lost = Arc::new(AtomicBool::new(shared.fault == Fault::Swallow));
    for (from, into) in [(&client, &server), (&server, &client)] {
        let (from, into, lost) = (from.try_clone()?, into.try_clone()?, Arc::clone(&lost));
        thread::spawn(move || pump(from, into, &lost));
    }
    shared.connections.push(Connection { client, server, lost });
    Ok(())
}

/// Passes on what comes. The end of a lost connection is news that does not arrive either.
fn pump(mut from: TcpStream, mut into: TcpStream, lost: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !lost.load(Ordering::SeqCst) && into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if !lost.load(Ordering::SeqCst) {
        let _ = into.shutdown(Shutdown::Write);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
