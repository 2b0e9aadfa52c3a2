//! A proxy in front of the API server that can cut, lose, delay and throttle connections.

// Each test program uses a part of it.
#![allow(dead_code, reason = "shared by several test programs")]

use anyhow::{Context as _, Result};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: they are passed on.
    None,
    /// They are closed, new ones at once.
    Cut,
    /// What is sent is taken and never arrives, and nobody closes anything. Such a connection stays lost.
    Swallow,
    /// What is sent arrives up to so much later, on each connection by another time: events of different kinds overtake
    /// each other.
    Delay(Duration),
    /// Of the connections that there are, this one and every fourth after it is so late, the others are not: what one watch
    /// shows is older by seconds than what another one does.
    Behind(Duration, u32),
    /// So many bytes arrive in a second, on each connection.
    Throttle(u32),
}

/// How many different delays connections have.
const STEPS: u32 = 4;

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
    way: Arc<Way>,
}

/// How one connection passes on what comes.
#[derive(Default)]
struct Way {
    lost: AtomicBool,
    /// How long each piece waits.
    delay: Mutex<Duration>,
    /// How many bytes arrive in a second, if that is limited.
    rate: AtomicU32,
}

impl Way {
    /// Sets what becomes of the connection with this number.
    fn set(&self, fault: Fault, number: u32) {
        let delay = match fault {
            Fault::Delay(most) => most / STEPS * (number % STEPS + 1),
            Fault::Behind(late, first) if number % STEPS == first % STEPS => late,
            _ => Duration::ZERO,
        };
        *self.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
        self.rate.store(if let Fault::Throttle(rate) = fault { rate } else { 0 }, Ordering::SeqCst);
        if fault == Fault::Swallow {
            self.lost.store(true, Ordering::SeqCst);
        }
    }

    /// Waits as long as it takes so many bytes to arrive.
    fn wait(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::SeqCst);
        let needs = Duration::from_secs(u64::try_from(bytes).unwrap_or_default())
            .checked_div(rate)
            .unwrap_or_default();
        let delay = *self.delay.lock().unwrap_or_else(PoisonError::into_inner);
        thread::sleep(delay + needs);
    }
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
        if fault == Fault::Cut {
            shared.connections.drain(..).for_each(Connection::close);
        }
        for (number, connection) in (0..).zip(&shared.connections) {
            connection.way.set(fault, number);
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
    let way = Arc::new(Way::default());
    let fault = if let Fault::Behind(..) = shared.fault { Fault::None } else { shared.fault };
    way.set(fault, u32::try_from(shared.connections.len()).unwrap_or_default());
    for (from, into) in [(&client, &server), (&server, &client)] {
        let (from, into, way) = (from.try_clone()?, into.try_clone()?, Arc::clone(&way));
        thread::spawn(move || pump(from, into, &way));
    }
    shared.connections.push(Connection { client, server, way });
    Ok(())
}

/// Passes on what comes. The end of a lost connection does not arrive either.
fn pump(mut from: TcpStream, mut into: TcpStream, way: &Way) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        way.wait(count);
        if !way.lost.load(Ordering::SeqCst) && into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if !way.lost.load(Ordering::SeqCst) {
        let _ = into.shutdown(Shutdown::Write);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
