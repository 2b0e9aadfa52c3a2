//! A kubelet that costs next to nothing: one `ListAndWatch` over a blocking socket, frame by frame, so that the figure is
//! the agent's and not the client's.

use macvtap_proto::deviceplugin::ListAndWatchResponse;
use prost::Message as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

/// A list, and when its last byte was there.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) at: Instant,
    pub(crate) devices: usize,
}

/// Frame types and flags of RFC 9113.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const FRAME_HEADER: usize = 9;

/// `SETTINGS_INITIAL_WINDOW_SIZE` and the largest window: nothing has to be acknowledged while a benchmark runs.
const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW_MAX: u32 = 0x7fff_ffff;
const WINDOW_DEFAULT: u32 = 0xffff;

/// Before the message of a gRPC call: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Follows the list of the plugin behind this socket for as long as somebody takes the lists.
pub(crate) fn watch(socket: &Path) -> mpsc::Receiver<List> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&request()).unwrap();
    let (lists, taken) = mpsc::channel();
    // Ends with the connection, which the agent closes.
    std::thread::spawn(move || follow(stream, &lists));
    taken
}

fn request() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(WINDOW_MAX.to_be_bytes());
    bytes.extend(frame(SETTINGS, 0, 0, &settings));
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_DEFAULT).to_be_bytes()));
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1beta1.DevicePlugin/ListAndWatch"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // A literal that is not indexed, as RFC 7541 has it.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block));
    bytes.extend(frame(DATA, END_STREAM, 1, &[0; PREFIX]));
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn follow(mut stream: UnixStream, lists: &mpsc::Sender<List>) -> io::Result<()> {
    let (mut received, mut message) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut chunk)?;
        let at = Instant::now();
        if count == 0 {
            return Ok(());
        }
        received.extend(&chunk[..count]);
        while let Some((kind, flags, payload)) = next(&mut received) {
            match kind {
                DATA => message.extend(payload),
                SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload))?,
                _ => {}
            }
        }
        while let Some(list) = take(&mut message) {
            let devices = ListAndWatchResponse::decode(list.as_slice()).unwrap().devices.len();
            if lists.send(List { at, devices }).is_err() {
                return Ok(());
            }
        }
    }
}

/// Takes the first frame, if all of it is there.
fn next(received: &mut Vec<u8>) -> Option<(u8, u8, Vec<u8>)> {
    let header = received.get(..FRAME_HEADER)?;
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
    let (kind, flags) = (header[3], header[4]);
    let payload = received.get(FRAME_HEADER..FRAME_HEADER + length)?.to_vec();
    received.drain(..FRAME_HEADER + length);
    Some((kind, flags, payload))
}

/// Takes the first message, if all of it is there.
fn take(message: &mut Vec<u8>) -> Option<Vec<u8>> {
    let prefix = message.get(..PREFIX)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let body = message.get(PREFIX..PREFIX + length)?.to_vec();
    message.drain(..PREFIX + length);
    Some(body)
}
