//! What the kernel's datagrams say to a request. Pure.

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NetlinkBuffer, NlasIterator};
use std::ops::Range;

/// `NLMSG_ERROR`, `NLMSG_NOOP`, `NLMSG_DONE` of `linux/netlink.h`.
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Length of `struct nlmsghdr`, which an error repeats from the request.
pub const HEADER_LEN: usize = 16;

/// `NLMSGERR_ATTR_MSG`: a sentence from the kernel.
const ATTR_MSG: u16 = 1;

/// What one datagram answers to one request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request succeeded; the kernel returned nothing else.
    Acknowledged,
    /// Refused.
    Refused {
        /// The error number.
        errno: i32,
        /// The reason, in the kernel's words.
        said: Option<String>,
    },
    /// The object asked for: where in the datagram its payload is.
    Object(Range<usize>),
    /// Nothing about this request.
    Stray,
}

/// Whether a list has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum ListEnd {
    /// More datagrams follow.
    NotYet,
    /// Nothing follows.
    Complete,
    /// The kernel refused.
    Refused {
        /// The error number.
        errno: i32,
        /// The reason, in the kernel's words.
        said: Option<String>,
    },
}

/// What has come of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The payload of each object.
    pub objects: Vec<Vec<u8>>,
    /// It changed while the kernel wrote it: something may be missing, or be there twice.
    pub is_torn: bool,
}

/// Adds the objects in a datagram that answer request `sequence`.
pub fn read_list(datagram: &[u8], sequence: u32, list: &mut List) -> Result<ListEnd, &'static str> {
    let mut start = 0;
    while let Some(rest) = datagram.get(start..).filter(|rest| !rest.is_empty()) {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| "is cut off")?;
        if message.sequence_number() == sequence {
            list.is_torn |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_DONE => return end_of(&message),
                NLMSG_ERROR => {
                    return match acknowledgement(&message)? {
                        Answer::Refused { errno, said } => Ok(ListEnd::Refused { errno, said }),
                        _ => Err("is not a list"),
                    };
                }
                _ => list.objects.push(message.payload().to_vec()),
            }
        }
        start += message_length(&message).next_multiple_of(4);
    }
    Ok(ListEnd::NotYet)
}

/// What the end of a list says: its payload is an error number, negative when the kernel could not go on (since 4.15), then
/// attributes, not the request's header as in other errors.
fn end_of(message: &NetlinkBuffer<&[u8]>) -> Result<ListEnd, &'static str> {
    let payload = message.payload();
    let Some((code, rest)) = payload.split_first_chunk() else { return Ok(ListEnd::Complete) };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(ListEnd::Complete);
    }
    let said = (message.flags() & NLM_F_ACK_TLVS != 0).then(|| sentence(rest)).flatten();
    Ok(ListEnd::Refused { errno: errno(code)?, said })
}

/// Finds the answer to request `sequence` in a datagram.
pub fn read(datagram: &[u8], sequence: u32) -> Result<Answer, &'static str> {
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
            let has_words = message.flags() & NLM_F_ACK_TLVS != 0;
            let said = has_words.then(|| rest.get(HEADER_LEN..).and_then(sentence)).flatten();
            Ok(Answer::Refused { errno: errno(code)?, said })
        }
    }
}

/// The error number in a code of the kernel's.
fn errno(code: i32) -> Result<i32, &'static str> {
    code.checked_neg().filter(|errno| (1..4096).contains(errno)).ok_or("has no valid error number")
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
    use crate::netlink::NetlinkError;
    use proptest::prelude::*;
    use rustix::io::Errno;

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
        let mut list = List::default();
        let mut datagram = message(24, 0, 7, b"one ");
        datagram.extend(message(24, 0, 6, b"other"));
        assert_eq!(read_list(&datagram, 7, &mut list), Ok(ListEnd::NotYet));
        datagram = message(24, 0, 7, b"two ");
        datagram.extend(message(NLMSG_DONE, 0, 7, &[0; 4]));
        assert_eq!(read_list(&datagram, 7, &mut list), Ok(ListEnd::Complete));
        assert_eq!(list, List { objects: vec![b"one ".to_vec(), b"two ".to_vec()], is_torn: false });
        let refused = message(NLMSG_ERROR, 0, 7, &(-1_i32).to_ne_bytes());
        assert_eq!(read_list(&refused, 7, &mut list), Ok(ListEnd::Refused { errno: 1, said: None }));
    }

    #[test]
    fn a_list_that_the_kernel_broke_off_is_refused_with_its_words() {
        let code = (-22_i32).to_ne_bytes();
        let attribute = [&[8, 0, 1, 0][..], b"bad\0"].concat();
        let said = message(NLMSG_DONE, NLM_F_ACK_TLVS, 7, &[&code[..], &attribute].concat());
        let refused = |said: Option<&str>| Ok(ListEnd::Refused { errno: 22, said: said.map(str::to_owned) });
        assert_eq!(read_list(&said, 7, &mut List::default()), refused(Some("bad")));
        assert_eq!(read_list(&message(NLMSG_DONE, 0, 7, &code), 7, &mut List::default()), refused(None));
        assert_eq!(
            read_list(&message(NLMSG_DONE, 0, 7, &[]), 7, &mut List::default()),
            Ok(ListEnd::Complete)
        );
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_read_to_its_end_and_known_as_torn() {
        for torn in [24, NLMSG_DONE] {
            let mut list = List::default();
            let flags = |kind| if kind == torn { NLM_F_DUMP_INTR } else { 0 };
            let mut datagram = message(24, flags(24), 7, b"one ");
            datagram.extend(message(NLMSG_DONE, flags(NLMSG_DONE), 7, &[0; 4]));
            assert_eq!(read_list(&datagram, 7, &mut list), Ok(ListEnd::Complete));
            assert!(list.is_torn);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..200),
                                              kind in 0..40_u16, flags: u16) {
            let _ = read(&noise, 1);
            let _ = read(&message(kind, flags, 1, &noise), 1);
            let _ = read_list(&noise, 1, &mut List::default());
            let _ = read_list(&message(kind, flags, 1, &noise), 1, &mut List::default());
        }
    }
}
