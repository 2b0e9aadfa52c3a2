//! What forbids taking a NIC from the node: somebody there uses it.

use crate::attach::AttachError;
use crate::fit::Tie;
use crate::kernel::Kernel;
use crate::link::NicLink;
use crate::links::Links;
use crate::paths::Paths;
use crate::records;

/// The first tie of a NIC of the node. `links` are all links there.
pub(crate) fn find<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    links: &[NicLink],
    nic: &NicLink,
) -> Result<Option<Tie>, AttachError> {
    let index = nic.link.index;
    if let Some(master) = nic.master {
        let name = links.iter().find(|link| link.link.index == master).map(|link| link.link.name.clone());
        return Ok(Some(Tie::Master(name.unwrap_or_else(|| format!("link {master}")))));
    }
    if let Some(upper) = links.iter().find(|link| link.is_on(index)) {
        return Ok(Some(Tie::Upper(upper.link.name.clone())));
    }
    // A macvtap in a pod is not to be seen from here, and would end with the move.
    let built =
        records::list(paths)?.records.into_iter().find(|r| r.nic.is_none() && r.lower_ifindex == index);
    if let Some(record) = built {
        return Ok(Some(Tie::Device(record.device)));
    }
    let node = kernel.node_links();
    if node.has_default_route(index)? {
        return Ok(Some(Tie::DefaultRoute));
    }
    Ok(node.has_address(index)?.then_some(Tie::HostAddress))
}
