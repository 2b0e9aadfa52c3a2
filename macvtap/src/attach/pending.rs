//! What the three kinds of link that a pod can be given have in common: a new macvtap, a whole NIC, an existing macvtap of
//! the node.

use super::error::AttachError;
use crate::kernel::Kernel;
use crate::link::{IfName, Link};
use crate::mac::MacAddr;

/// A link on its way into a pod. Dropping it undoes every step taken.
pub trait Pending: Sized {
    /// What takes the steps.
    type Kernel: Kernel;
    /// The kernel, for what a network needs in addition to its link.
    fn kernel(&mut self) -> &mut Self::Kernel;
    /// Whether the same holder had the device before, so that what belongs to it in addition to the link may exist.
    fn is_repeat(&self) -> bool;
    /// Fails if the link cannot be placed, as far as that can be known, for a caller that does something costly first.
    /// Otherwise [`Pending::place`] or [`Pending::finish`] finds out.
    fn check(&mut self) -> Result<(), AttachError> {
        Ok(())
    }
    /// Sets the address that the link gets when it is placed.
    fn wish_mac(&mut self, mac: MacAddr);
    /// Puts the link into the pod, down.
    fn place(&mut self) -> Result<(), AttachError>;
    /// The index of the link in the pod, once it is placed.
    fn index(&self) -> u32;
    /// The name of the link in the pod.
    fn ifname(&self) -> &IfName;
    /// Returns the link as it is now, in the pod.
    fn link(&mut self) -> Result<Link, AttachError>;
    /// Turns off what IPv6 configures on the link without being asked.
    fn no_autoconfiguration(&mut self) -> Result<(), AttachError> {
        let (index, name) = (self.index(), self.ifname().clone());
        Ok(self.kernel().no_autoconfiguration(index, name.as_str())?)
    }
    /// Sets the link up; the kernel finds here that its address is taken.
    fn up(&mut self) -> Result<(), AttachError>;
    /// Whether frames of ours may be sent from the link while it has no carrier.
    fn sends_without_carrier(&self) -> bool {
        true
    }
    /// Completes the attachment: nothing is undone any more.
    fn finish(self) -> Result<Link, AttachError>;
}

/// How an attachment begins.
#[derive(Debug)]
pub enum Begun<P> {
    /// The device is free, or free now.
    New(Box<P>),
    /// The same holder has it, as requested ([`Repeat::Keep`](crate::claim::Repeat::Keep)).
    Present(Link),
}
