//! The frames that guests exchange, each with its virtio header. Pure.

use crate::support::queue::HEADER;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Length of the headers of Ethernet, IPv4 and TCP.
const TCP_HEADERS: usize = 14 + 20 + 20;

/// The ports from this one on are those of the senders.
const FIRST_PORT: u16 = 20_000;

/// Flows of one sender: the kernel spreads flows, not frames, over queues.
pub(crate) const FLOWS: u16 = 8;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// UDP frames of this length, without the frame check sequence.
    Frames(usize),
    /// TCP segments of 64 KiB that are made into frames of this MTU where somebody does not take them whole.
    Segments(u16),
}

/// The frame of a flow of a sender.
pub(crate) fn frame(kind: Kind, from: Mac, to: Mac, sender: u16, flow: u16) -> Vec<u8> {
    let port = FIRST_PORT + sender * FLOWS + flow;
    match kind {
        Kind::Frames(length) => udp(from, to, port, length),
        Kind::Segments(mtu) => tcp(from, to, port, mtu),
    }
}

/// The sender of a received frame, if it is one of ours.
pub(crate) fn sender(frame: &[u8]) -> Option<usize> {
    let frame = frame.get(HEADER..)?;
    if frame.get(12..14)? != [8, 0] {
        return None;
    }
    let port = u16::from_be_bytes(frame.get(34..36)?.try_into().ok()?);
    let number = port.checked_sub(FIRST_PORT)? / FLOWS;
    Some(number.into())
}

/// Turns a received frame into its answer.
pub(crate) fn turn(frame: &mut [u8]) {
    let frame = &mut frame[HEADER..];
    for (a, b, length) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        for at in 0..length {
            frame.swap(a + at, b + at);
        }
    }
}

fn udp(from: Mac, to: Mac, port: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(ethernet_and_ipv4(from, to, 17, length - 14));
    frame.extend(port.to_be_bytes());
    frame.extend(FIRST_PORT.to_be_bytes());
    frame.extend(u16::try_from(length - 34).unwrap().to_be_bytes());
    frame.resize(HEADER + length, 0);
    frame
}

/// As a guest hands it over: the checksum is left to the NIC, `VIRTIO_NET_HDR_F_NEEDS_CSUM`, and so is the segmentation,
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
fn tcp(from: Mac, to: Mac, port: u16, mtu: u16) -> Vec<u8> {
    const LENGTH: usize = 65_000;
    let headers = u16::try_from(TCP_HEADERS).unwrap();
    let mut frame = vec![1, 1];
    for value in [headers, mtu - 40, 34, 16] {
        frame.extend(value.to_ne_bytes());
    }
    frame.extend(ethernet_and_ipv4(from, to, 6, LENGTH));
    frame.extend(port.to_be_bytes());
    frame.extend(FIRST_PORT.to_be_bytes());
    // Numbers 1 and 1, five words of header, ACK, a window; then the sum of the pseudo header.
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    let length = u16::try_from(LENGTH - 20).unwrap();
    let words = [ADDRESS, 1, ADDRESS, 2, 6, length];
    frame.extend(fold(words.iter().map(|word| u32::from(*word)).sum()).to_be_bytes());
    frame.resize(HEADER + 14 + LENGTH, 0);
    frame
}

/// The upper half of both addresses: 10.9.0.1 sends to 10.9.0.2.
const ADDRESS: u16 = 0x0a09;

fn ethernet_and_ipv4(from: Mac, to: Mac, protocol: u8, length: usize) -> Vec<u8> {
    let mut header: Vec<u8> = [to, from].concat();
    header.extend([8, 0]);
    let length = u16::try_from(length).unwrap();
    let words = [0x4500, length, 0, 0x4000, 0x4000 | u16::from(protocol), 0, ADDRESS, 1, ADDRESS, 2];
    let sum = !fold(words.iter().map(|word| u32::from(*word)).sum());
    for (place, word) in words.into_iter().enumerate() {
        header.extend(if place == 5 { sum } else { word }.to_be_bytes());
    }
    header
}

/// A sum of 16-bit words with the carries added (RFC 1071).
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap()
}
