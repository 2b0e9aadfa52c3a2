//! Routes an IPAM plugin names: completed, and as the kernel takes them. Pure.

use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Ip, Route};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteProtocol,
    RouteScope, RouteType,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Destination of the default route, one per family.
pub(crate) const EVERYTHING: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];

/// `RT_SCOPE_LINK` of `linux/rtnetlink.h`: destinations from here on have no router.
const SCOPE_LINK: u8 = 253;

/// The metric of an IPv6 route that names none (`IP6_RT_PRIO_USER` of `net/ipv6.h`); an IPv4 route has 0.
const V6_METRIC: u32 = 1024;

/// A unicast route of the pod, as far as routes are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) table: u32,
    pub(super) destination: IpNet,
    pub(super) gateway: Option<IpAddr>,
    pub(super) priority: Option<u32>,
    pub(super) ifindex: Option<u32>,
}

/// Whether an address is of the family of this network.
pub(crate) fn same_family(net: &IpNet, address: &IpAddr) -> bool {
    net.addr().is_ipv4() == address.is_ipv4()
}

/// Gives every route the destination and the router it means. A route without a destination is the default route of its
/// router's family; one without a router uses the gateway of its family, if an address came with one. Programs that write a
/// result from a struct write 0 for a number, that they do not name; an unspecified router means that there is none. Routes without
/// a router come first: they may lead to the routers of the others.
pub(crate) fn complete(result: &mut CniResult) -> Result<(), CniError> {
    for route in &mut result.routes {
        for number in [&mut route.mtu, &mut route.advmss, &mut route.priority, &mut route.table] {
            *number = number.filter(|number| *number != 0);
        }
        let destination = match (route.dst, route.gw) {
            (Some(destination), _) => Some(destination.trunc()),
            (None, Some(gateway)) => EVERYTHING.into_iter().find(|net| same_family(net, &gateway)),
            (None, None) => None,
        };
        if route.gw.take_if(|gateway| gateway.is_unspecified()).is_some() {
            route.scope = Some(SCOPE_LINK);
        }
        let destination = destination.ok_or_else(|| {
            CniError::new(Code::Ipam, "it gave a route with neither destination nor router")
        })?;
        if let Some(gateway) = route.gw.filter(|gateway| !same_family(&destination, gateway)) {
            let message =
                format!("it gave a route to {destination} via {gateway}, which is of another family");
            return Err(CniError::new(Code::Ipam, message));
        }
        route.dst = Some(destination);
        if route.scope.is_none_or(|scope| scope < SCOPE_LINK) {
            route.gw = route.gw.or_else(|| gateway(&result.ips, &destination));
        }
    }
    result.routes.sort_by_key(|route| route.gw.is_some());
    Ok(())
}

/// The route in words.
pub(crate) fn describe(route: &Route) -> String {
    let destination = route.dst.map(|destination| destination.to_string()).unwrap_or_default();
    match route.gw {
        Some(gateway) => format!("{destination} via {gateway}"),
        None => destination,
    }
}

/// The request that adds a completed route.
pub(crate) fn message(ifindex: u32, route: &Route) -> Option<RouteMessage> {
    let destination = route.dst?;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(destination.addr());
    header.destination_prefix_length = destination.prefix_len();
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    header.protocol = RouteProtocol::Boot;
    header.kind = RouteType::Unicast;
    header.scope = match (route.scope, route.gw) {
        (Some(scope), _) => scope.into(),
        (None, Some(_)) => RouteScope::Universe,
        (None, None) => RouteScope::Link,
    };
    let attributes = &mut message.attributes;
    if destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route_address(destination.addr())));
    }
    attributes.extend(route.gw.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
    attributes.push(RouteAttribute::Oif(ifindex));
    attributes.push(RouteAttribute::Table(table(route)));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    let metrics: Vec<_> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    Some(message)
}

/// Gives an IPv6 route a metric in front of the routes that other interfaces have to its destination: with an equal metric
/// the kernel would share the traffic among them, with a higher one it would not use it. A metric that the plugin named
/// stays, unless another interface has the very same. Where another one has 1, which nothing can be in front of, the route
/// is put behind it: to share is worse than to wait.
pub(crate) fn put_in_front(request: &mut RouteMessage, present: &[Entry]) {
    let Some((new, _)) = unicast(request) else { return };
    let others = present.iter().filter(|other| {
        (other.table, other.destination) == (new.table, new.destination) && other.ifindex != new.ifindex
    });
    let others: Vec<u32> = others.map(|other| other.priority.unwrap_or(V6_METRIC)).collect();
    // The kernel takes 0 for "not named".
    let is_free = |metric: &u32| *metric != 0 && !others.contains(metric);
    let metric = match new.priority.filter(|metric| *metric != 0) {
        Some(named) => (1..=named).rev().find(|metric| is_free(metric)),
        None => {
            Some(others.iter().map(|other| other.saturating_sub(1)).min().unwrap_or(V6_METRIC).min(V6_METRIC))
                .filter(is_free)
        }
    };
    let metric = metric.or_else(|| (1..=V6_METRIC).find(is_free)).unwrap_or(V6_METRIC);
    request.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Priority(_)));
    request.attributes.push(RouteAttribute::Priority(metric));
}

/// The routing table a route is for.
pub(crate) fn table(route: &Route) -> u32 {
    route.table.unwrap_or(u32::from(RouteHeader::RT_TABLE_MAIN))
}

/// An address as the kernel wants it in a route.
pub(crate) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// The kernel's number for the family of an address.
pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// A unicast route that the kernel lists, once for each next hop; none for one of another kind.
pub(super) fn entries(message: &RouteMessage) -> Vec<Entry> {
    let Some((whole, hops)) = unicast(message) else { return Vec::new() };
    let hop = |hop: &RouteNextHop| {
        let gateway = hop.attributes.iter().find_map(gateway_of);
        Entry { gateway, ifindex: Some(hop.interface_index), ..whole }
    };
    match hops {
        // The kernel makes one route of IPv6 routes that differ in their routers only.
        Some(hops) => hops.iter().map(hop).collect(),
        None => vec![whole],
    }
}

fn unicast(message: &RouteMessage) -> Option<(Entry, Option<&[RouteNextHop]>)> {
    let default = match message.header.address_family {
        AddressFamily::Inet => EVERYTHING[0].addr(),
        AddressFamily::Inet6 => EVERYTHING[1].addr(),
        _ => return None,
    };
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let table = u32::from(message.header.table);
    let mut entry = Entry { table, destination: EVERYTHING[0], gateway: None, priority: None, ifindex: None };
    let (mut destination, mut hops) = (default, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(_) => entry.gateway = gateway_of(attribute),
            RouteAttribute::Priority(priority) => entry.priority = Some(*priority),
            RouteAttribute::Table(table) => entry.table = *table,
            RouteAttribute::Oif(index) => entry.ifindex = Some(*index),
            RouteAttribute::MultiPath(all) => hops = Some(all.as_slice()),
            _ => {}
        }
    }
    entry.destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some((entry, hops))
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn gateway(ips: &[Ip], destination: &IpNet) -> Option<IpAddr> {
    // The way to a router that is outside of the addresses' networks is the link itself.
    let usable = |gateway: &IpAddr| {
        same_family(destination, gateway)
            && !gateway.is_unspecified()
            && *destination != IpNet::from(*gateway)
    };
    ips.iter().find_map(|ip| ip.gateway.filter(usable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn completed(routes: &Value) -> Result<Vec<Route>, CniError> {
        let ips = json!([{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}]);
        let mut result = CniResult::parse(json!({"ips": ips, "routes": routes}), "it", Code::Ipam)?;
        complete(&mut result).map(|()| result.routes)
    }

    #[test]
    fn a_route_is_completed_from_its_family() {
        for (given, meant) in [
            (json!({"dst": "10.9.1.7/16"}), "10.9.0.0/16 via 10.0.0.1"),
            (json!({"gw": "10.0.0.9"}), "0.0.0.0/0 via 10.0.0.9"),
            (json!({"gw": "fd00::9"}), "::/0 via fd00::9"),
            (json!({"dst": "fd01::/64"}), "fd01::/64"),
            (json!({"dst": "10.9.0.0/16", "scope": 253}), "10.9.0.0/16"),
            (json!({"dst": "10.0.0.1/32"}), "10.0.0.1/32"),
        ] {
            assert_eq!(describe(&completed(&json!([given])).unwrap()[0]), meant, "{given}");
        }
        let nothing =
            json!({"dst": "10.9.0.0/16", "gw": "0.0.0.0", "mtu": 0, "advmss": 0, "priority": 0, "table": 0});
        let link = json!({"dst": "10.9.0.0/16", "scope": 253});
        let default = json!({"dst": "0.0.0.0/0", "gw": "10.9.0.1"});
        assert_eq!(
            completed(&json!([default.clone(), nothing])).unwrap(),
            completed(&json!([link, default])).unwrap(),
            "what a router needs comes before it"
        );
        assert!(completed(&json!([{}])).is_err());
        let mixed = completed(&json!([{"dst": "10.9.0.0/16", "gw": "fd00::9"}])).unwrap_err();
        assert!(mixed.message.contains("of another family"), "{}", mixed.message);
    }

    #[test]
    fn an_ipv6_route_gets_a_metric_in_front_of_other_interfaces() {
        let of = |ifindex, priority, table| {
            let (dst, gw) = (Some("::/0".parse().unwrap()), Some("fd00::1".parse().unwrap()));
            message(ifindex, &Route { dst, gw, priority, table, ..Route::default() }).unwrap()
        };
        let others = [of(2, Some(1024), None), of(3, Some(512), None), of(2, Some(7), Some(100))];
        let others: Vec<Entry> = others.iter().flat_map(entries).collect();
        let metric = |named, others: &[Entry]| {
            let mut request = of(7, named, None);
            put_in_front(&mut request, others);
            entries(&request)[0].priority.unwrap()
        };
        assert_eq!(metric(None, &[]), 1024);
        assert_eq!(metric(None, &others), 511);
        assert_eq!(metric(Some(1024), &others), 1023, "the very same");
        assert_eq!(metric(Some(600), &others), 600, "as asked for");
        let first = entries(&of(2, Some(1), None))[0];
        for named in [None, Some(1), Some(0)] {
            assert_eq!(metric(named, &[first, others[1]]), 2, "nothing is in front of 1");
        }
        let ours = entries(&of(7, Some(9), None))[0];
        assert_eq!(metric(None, &[ours]), 1024, "its own");
    }

    #[test]
    fn what_newer_versions_say_about_a_route_reaches_the_kernel() {
        let route = json!({"dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1300, "priority": 50, "table": 1000});
        let routes = completed(&json!([route])).unwrap();
        let attributes = message(7, &routes[0]).unwrap().attributes;
        for wanted in [
            RouteAttribute::Table(1000),
            RouteAttribute::Priority(50),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::Advmss(1300)]),
        ] {
            assert!(attributes.contains(&wanted), "{wanted:?} in {attributes:?}");
        }
        assert_eq!(serde_json::to_value(&routes[0]).unwrap(), route);
    }
}
