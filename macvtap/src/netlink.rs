//! A synchronous route-netlink socket: one request, one answer.
//!
//! A socket acts in the network namespace in which it was opened, from whatever thread; see
//! [`Netns::enter`](crate::netns::Netns::enter) for opening one elsewhere. Links are never listed: a namespace with
//! hundreds of them must not make a request for one slow.

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NlasIterator,
};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use std::fmt::Display;
use std::io;
use std::ops::Range;

/// The kernel's answers about one link stay below this, also with a hundred virtual functions.
const ANSWER_MAX: usize = 64 << 10;

/// Messages that are no answer to the request: so many are skipped before the socket counts as disturbed.
const STRAYS_MAX: u32 = 1_000;

/// More addresses or routes than any pod has.
const LIST_MAX: usize = 100_000;

/// `NLMSG_ERROR`, `NLMSG_NOOP`, `NLMSG_DONE` of `linux/netlink.h`.
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Length of `struct nlmsghdr`, which an error repeats from the request.
const HEADER_LEN: usize = 16;

/// `NLMSGERR_ATTR_MSG`: a sentence from the kernel.
const ATTR_MSG: u16 = 1;

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
    /// The answer makes no sense.
    #[error("{what}: the kernel's answer {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong, as the rest of a sentence.
        problem: &'static str,
    },
}

/// What one datagram says to one request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Done, nothing to tell.
    Acknowledged,
    /// Refused.
    Refused { errno: i32, said: Option<String> },
    /// The object asked for: where in the datagram its payload is.
    Object(Range<usize>),
    /// Nothing about this request.
    Stray,
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { .. } | Self::Answer { .. } => None,
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

    /// Asks for a list; gives the payload of each object. A list that changed while the kernel wrote it is an error.
    pub fn list(
        &mut self,
        kind: Kind,
        message: &impl Emitable,
        what: &dyn Display,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.send(kind, message, NLM_F_DUMP, what)?;
        let mut objects = Vec::new();
        loop {
            self.receive(what)?;
            let read = read_list(&self.buffer, self.sequence, &mut objects);
            match read.map_err(|problem| NetlinkError::Answer { what: what.to_string(), problem })? {
                ListEnd::NotYet if objects.len() <= LIST_MAX => {}
                ListEnd::NotYet => {
                    let problem = "is a list without an end";
                    return Err(NetlinkError::Answer { what: what.to_string(), problem });
                }
                ListEnd::Complete => return Ok(objects),
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

    /// Waits for the kernel's next datagram, into the buffer.
    fn receive(&mut self, what: &dyn Display) -> Result<(), NetlinkError> {
        for _ in 0..STRAYS_MAX {
            self.buffer.clear();
            let received = self.inner.recv_from(&mut self.buffer, 0);
            let (length, sender) = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(NetlinkError::Socket { what: what.to_string(), source });
                }
            };
            // A process with CAP_NET_ADMIN in the socket's namespace (a pod may have it) can write to the socket.
            if sender.port_number() != 0 {
                continue;
            }
            if length >= ANSWER_MAX {
                return Err(NetlinkError::Answer { what: what.to_string(), problem: "is too long" });
            }
            return Ok(());
        }
        Err(disturbed(what))
    }
}

fn disturbed(what: &dyn Display) -> NetlinkError {
    NetlinkError::Answer { what: what.to_string(), problem: "did not come: others write to the socket" }
}

/// Whether a list has ended.
#[derive(Debug, PartialEq, Eq)]
enum ListEnd {
    /// More datagrams follow.
    NotYet,
    /// Nothing follows.
    Complete,
    /// The kernel refused.
    Refused { errno: i32, said: Option<String> },
}

/// Adds the objects in a datagram that answer request `sequence`.
fn read_list(datagram: &[u8], sequence: u32, objects: &mut Vec<Vec<u8>>) -> Result<ListEnd, &'static str> {
    let mut start = 0;
    while let Some(rest) = datagram.get(start..).filter(|rest| !rest.is_empty()) {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| "is cut off")?;
        if message.sequence_number() == sequence {
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                return Err("changed while it was read");
            }
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_DONE => return Ok(ListEnd::Complete),
                NLMSG_ERROR => {
                    return match acknowledgement(&message)? {
                        Answer::Refused { errno, said } => Ok(ListEnd::Refused { errno, said }),
                        _ => Err("is no list"),
                    };
                }
                _ => objects.push(message.payload().to_vec()),
            }
        }
        start += message_length(&message).next_multiple_of(4);
    }
    Ok(ListEnd::NotYet)
}

/// Finds the answer to request `sequence` in a datagram.
fn read(datagram: &[u8], sequence: u32) -> Result<Answer, &'static str> {
    let mut start = 0;
    while let Some(rest) = datagram.get(start..).filter(|rest| !rest.is_empty()) {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| "is cut off")?;
        if message.sequence_number() == sequence {
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_ERROR => return acknowledgement(&message),
                NLMSG_DONE => return Err("is an empty list"),
                _ => {
                    return Ok(Answer::Object(start + HEADER_LEN..start + message_length(&message)));
                }
            }
        }
        start += message_length(&message).next_multiple_of(4);
    }
    Ok(Answer::Stray)
}

/// Header and payload; the buffer was checked to hold as much.
fn message_length(message: &NetlinkBuffer<&[u8]>) -> usize {
    HEADER_LEN + message.payload_length()
}

fn acknowledgement(message: &NetlinkBuffer<&[u8]>) -> Result<Answer, &'static str> {
    let payload = message.payload();
    let (code, rest) = payload.split_first_chunk().ok_or("is cut off")?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(Answer::Acknowledged),
        code => {
            let told = message.flags() & NLM_F_ACK_TLVS != 0;
            let said = told.then(|| rest.get(HEADER_LEN..).and_then(sentence)).flatten();
            let errno = code.checked_neg().filter(|errno| (1..4096).contains(errno));
            Ok(Answer::Refused { errno: errno.ok_or("has no valid error number")?, said })
        }
    }
}

fn sentence(attributes: &[u8]) -> Option<String> {
    let message =
        NlasIterator::new(attributes).find_map(|attribute| attribute.ok().filter(|a| a.kind() == ATTR_MSG));
    let text = message?.value().to_vec();
    let text = String::from_utf8_lossy(&text);
    Some(text.trim_end_matches('\0').chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_answer_is_the_message_with_the_requests_number() {
        let mut datagram = message(16, 0, 6, b"other");
        datagram.extend(message(16, 0, 7, b"mine"));
        let Ok(Answer::Object(object)) = read(&datagram, 7) else { panic!("no object") };
        assert_eq!(&datagram[object], b"mine");
        assert_eq!(read(&datagram, 8), Ok(Answer::Stray));
    }

    #[test]
    fn a_refusal_carries_the_kernels_sentence() {
        let mut payload = (-17_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER_LEN]);
        payload.extend([9, 0, 1, 0, b't', b'a', b'k', b'e', 0]);
        let datagram = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, &payload);
        assert_eq!(read(&datagram, 1), Ok(Answer::Refused { errno: 17, said: Some("take".into()) }));
        let error = NetlinkError::Refused {
            what: "create macvtap net1".into(),
            said: Some("taken".into()),
            errno: Errno::EXIST,
        };
        assert_eq!(error.to_string(), "create macvtap net1 (kernel: taken)");
    }

    #[test]
    fn short_and_senseless_answers_are_errors() {
        let number = |n: i32| message(NLMSG_ERROR, 0, 1, &n.to_ne_bytes());
        for datagram in [
            vec![1],
            vec![0; HEADER_LEN],
            message(NLMSG_ERROR, 0, 1, &[0, 0]),
            message(NLMSG_DONE, 0, 1, &[0; 4]),
            number(i32::MIN),
            number(17),
        ] {
            assert!(read(&datagram, 1).is_err(), "{datagram:?}");
        }
    }

    #[test]
    fn a_list_ends_where_the_kernel_says_so() {
        let mut objects = Vec::new();
        let mut datagram = message(24, 0, 7, b"one ");
        datagram.extend(message(24, 0, 6, b"other"));
        assert_eq!(read_list(&datagram, 7, &mut objects), Ok(ListEnd::NotYet));
        datagram = message(24, 0, 7, b"two ");
        datagram.extend(message(NLMSG_DONE, 0, 7, &[0; 4]));
        assert_eq!(read_list(&datagram, 7, &mut objects), Ok(ListEnd::Complete));
        assert_eq!(objects, [b"one ".to_vec(), b"two ".to_vec()]);
        let refused = message(NLMSG_ERROR, 0, 7, &(-1_i32).to_ne_bytes());
        assert_eq!(read_list(&refused, 7, &mut objects), Ok(ListEnd::Refused { errno: 1, said: None }));
        assert!(read_list(&message(24, NLM_F_DUMP_INTR, 7, b"x"), 7, &mut objects).is_err());
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..200),
                                              kind in 0..40_u16, flags: u16) {
            let _ = read(&noise, 1);
            let _ = read(&message(kind, flags, 1, &noise), 1);
            let _ = read_list(&noise, 1, &mut Vec::new());
            let _ = read_list(&message(kind, flags, 1, &noise), 1, &mut Vec::new());
        }
    }
}
