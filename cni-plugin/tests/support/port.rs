//! A guest's end of a tap, whether the guest moves the frames itself or vhost-net does.

use std::time::Duration;

/// One queue of a tap.
pub(crate) trait Port: Send {
    /// Sends a frame with its header; whether there was room.
    fn send(&mut self, frame: &[u8]) -> rustix::io::Result<bool>;
    /// Reads a frame with its header, if there is one.
    fn receive(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>>;
    /// Waits until there may be a frame.
    fn wait(&self, at_most: Duration);
}
