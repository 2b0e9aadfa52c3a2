//! A synchronous route-netlink socket: one request, one answer.
//!
//! A socket acts in the network namespace in which it was opened, from whatever thread; see
//! [`Netns::enter`](crate::netns::Netns::enter) for opening one elsewhere. A macvtap's links are never listed: a
//! namespace with hundreds of them must not make a request for one slow. Whole NICs are looked for in lists.

pub mod answer;

use answer::{Answer, HEADER_LEN, List, ListEnd, read, read_list};
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use std::fmt::Display;
use std::io;
use std::ops::Range;

/// The kernel's answers about one link stay below this, also with a hundred virtual functions, or with as many other names
/// as it allows a link: 64 KiB.
const ANSWER_MAX: usize = 128 << 10;

/// Late answers to earlier requests: so many are skipped before the one that is waited for counts as lost.
const STRAYS_MAX: u32 = 1_000;

/// More addresses, routes or links than there are anywhere.
const LIST_MAX: usize = 100_000;

/// A list that changed while the kernel wrote it is asked for again so often: on a busy node links come and go.
const LIST_TRIES: u32 = 10;

/// What is asked for, with the kernel's numbers (`linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// `RTM_NEWLINK`
    NewLink = 16,
    /// `RTM_DELLINK`
    DelLink = 17,
    /// `RTM_GETLINK`
    GetLink = 18,
    /// `RTM_SETLINK`
    SetLink = 19,
    /// `RTM_NEWADDR`
    NewAddress = 20,
    /// `RTM_GETADDR`
    GetAddress = 22,
    /// `RTM_NEWROUTE`
    NewRoute = 24,
    /// `RTM_DELROUTE`
    DelRoute = 25,
    /// `RTM_GETROUTE`
    GetRoute = 26,
    /// `RTM_NEWNSID`
    NewNsId = 88,
    /// `RTM_GETNSID`
    GetNsId = 90,
    /// `RTM_GETNEXTHOP`
    GetNexthop = 106,
    /// `RTM_DELLINKPROP`
    DelLinkProperty = 109,
}

/// A socket for requests.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Whether a list is what there was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused.
    #[error("{what}{}", said.as_ref().map(|s| format!(" (kernel: {s})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's own sentence, if it had one.
        said: Option<String>,
        /// Its error number.
        #[source]
        errno: Errno,
    },
    /// The socket failed.
    #[error("{what}: netlink socket")]
    Socket {
        /// What was asked for.
        what: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A switch that netlink does not have could not be set.
    #[error("{what}")]
    Switch {
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error("{what}: the kernel's answer {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong, as the rest of a sentence.
        problem: &'static str,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { .. } | Self::Switch { .. } | Self::Answer { .. } => None,
        }
    }
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::Socket { what: "open".to_owned(), source };
        let inner = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed)?;
        // Binds it, too.
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Requests with attributes the kernel does not know fail instead of meaning something else.
        inner.set_netlink_get_strict_chk(true).map_err(failed)?;
        // An error carries a sentence, and not the whole request again.
        inner.set_ext_ack(true).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        Ok(Self { inner, sequence: 0, buffer: Vec::with_capacity(ANSWER_MAX) })
    }

    /// Sends a request that changes something and waits until it is done. `flags` beside `REQUEST` and `ACK`; `what`
    /// says what is asked for, for the error.
    pub fn act(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        flags: u16,
        what: &dyn Display,
    ) -> Result<(), NetlinkError> {
        self.send(kind, message, flags | NLM_F_ACK, what)?;
        self.answer(what).map(|_| ())
    }

    /// Asks for one object; gives the payload of the answer, beginning with the object's fixed header.
    pub fn get(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        what: &dyn Display,
    ) -> Result<&[u8], NetlinkError> {
        self.send(kind, message, 0, what)?;
        match self.answer(what)? {
            Some(object) => Ok(self.buffer.get(object).unwrap_or_default()),
            None => Err(NetlinkError::Answer { what: what.to_string(), problem: "is empty" }),
        }
    }

    /// Asks for a list; gives the payload of each object. A list that changes while the kernel writes it, time and again,
    /// is an error.
    pub fn list(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        what: &dyn Display,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let list = self.fold(kind, message, what, |list: &mut Vec<Vec<u8>>, object| {
            if list.len() <= LIST_MAX {
                list.push(object.to_vec());
            }
        })?;
        if list.len() > LIST_MAX {
            let problem = "is a list without an end";
            return Err(NetlinkError::Answer { what: what.to_string(), problem });
        }
        Ok(list)
    }

    /// Asks for a list of any length, and hands on the payload of each object as it comes, with what has come of those
    /// before. Starts again when the list changes while the kernel writes it; that time and again is an error.
    pub fn fold<T: Default>(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        what: &dyn Display,
        mut add: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, NetlinkError> {
        for _ in 0..LIST_TRIES {
            let mut found = T::default();
            if self.fold_once(kind, message, what, |object| add(&mut found, object))? == Whole::Yes {
                return Ok(found);
            }
        }
        Err(NetlinkError::Answer { what: what.to_string(), problem: "changed each time it was read" })
    }

    /// Reads a list to its end, also a torn one: the kernel writes one list for a socket at a time.
    fn fold_once(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        what: &dyn Display,
        mut add: impl FnMut(&[u8]),
    ) -> Result<Whole, NetlinkError> {
        self.send(kind, message, NLM_F_DUMP, what)?;
        let mut whole = Whole::Yes;
        loop {
            self.receive(what)?;
            let mut part = List::default();
            let read = read_list(&self.buffer, self.sequence, &mut part);
            part.objects.iter().for_each(|object| add(object));
            if part.is_torn {
                whole = Whole::No;
            }
            match read.map_err(|problem| NetlinkError::Answer { what: what.to_string(), problem })? {
                ListEnd::NotYet => {}
                ListEnd::Complete => return Ok(whole),
                ListEnd::Refused { errno, said } => {
                    let errno = Errno::from_raw_os_error(errno);
                    return Err(NetlinkError::Refused { what: what.to_string(), said, errno });
                }
            }
        }
    }

    fn send(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        flags: u16,
        what: &dyn Display,
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = vec![0; HEADER_LEN + message.buffer_len()];
        let mut header = NetlinkHeader::default();
        header.message_type = kind as u16;
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        // Ours are a few hundred bytes.
        header.length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let (head, body) = bytes.split_at_mut(HEADER_LEN);
        header.emit(head);
        message.emit(body);
        loop {
            match self.inner.send(&bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(NetlinkError::Socket { what: what.to_string(), source });
                }
            }
        }
    }

    /// Waits for the answer to the last request: an object, or none for an acknowledgement.
    fn answer(&mut self, what: &dyn Display) -> Result<Option<Range<usize>>, NetlinkError> {
        for _ in 0..STRAYS_MAX {
            self.receive(what)?;
            match read(&self.buffer, self.sequence) {
                Ok(Answer::Stray) => {}
                Ok(Answer::Acknowledged) => return Ok(None),
                Ok(Answer::Refused { errno, said }) => {
                    let errno = Errno::from_raw_os_error(errno);
                    return Err(NetlinkError::Refused { what: what.to_string(), said, errno });
                }
                Ok(Answer::Object(object)) => return Ok(Some(object)),
                Err(problem) => {
                    return Err(NetlinkError::Answer { what: what.to_string(), problem });
                }
            }
        }
        Err(disturbed(what))
    }

    /// Waits for the kernel's next datagram, into the buffer. Nobody else can write to the socket: it is connected to the
    /// kernel, which refuses other senders.
    fn receive(&mut self, what: &dyn Display) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(length) if length < ANSWER_MAX => return Ok(()),
                Ok(_) => {
                    return Err(NetlinkError::Answer { what: what.to_string(), problem: "is too long" });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(NetlinkError::Socket { what: what.to_string(), source });
                }
            }
        }
    }
}

fn disturbed(what: &dyn Display) -> NetlinkError {
    NetlinkError::Answer { what: what.to_string(), problem: "did not come" }
}
