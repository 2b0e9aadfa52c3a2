//! Why a pool does not have a link, and why a link that it has is unhealthy.

use crate::Scene;
use anyhow::Result;

/// Links that pools ask for and do not get.
pub(crate) fn refused(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(0..=10)?;
    scene.ip("link add cxbr type bridge
         link set cx4 master cxbr
         link add link cx3 name cxupper type macvlan mode bridge
         link add link cx5 name cxpass type macvtap mode passthru
         tuntap add dev cxtun mode tun
         addr add 192.0.2.1/32 dev cx2
         route add default dev cx1 metric 50000")?;
    let bridge = "capacity: {perLink: 5}";
    let whole = "macvtap: {mode: Passthru}";
    for (pool, links, more) in [
        ("cx-excluded", "cx0", "exclude: [{names: [cx0]}]"),
        ("cx-route", "cx1", "excludeDefaultRoute: true"),
        ("cx-address", "cx2", whole),
        ("cx-upper", "cx3", whole),
        ("cx-port", "cx4", bridge),
        ("cx-passthru", "cx5", bridge),
        ("cx-kind", "cxtun", bridge),
        ("cx-winner", "cx6", "priority: 5"),
        ("cx-loser", "cx6", "priority: 1"),
        ("cx-name", "cx8", "resourceName: cx7"),
        ("cx-each", "cx7", "resourcePer: Link"),
        ("cx-limit", "cx9, cx10", "capacity: {perLink: 5, perNode: 1}"),
        ("cx-dry", "cx8", "advertisement: DryRun"),
    ] {
        scene.pool(pool, &format!("  links: [{{names: [{links}]}}]\n  {more}\n"))?;
    }
    for fact in [
        "link n1/cx0 Excluded",
        "part n1/cx-excluded Ready False NoMatchingLink",
        "pool cx-excluded Ready False NoMatchingLinks",
        "node n1 Ready False PoolsNotReady",
        "link n1/cx1 DefaultRoute",
        "link n1/cx2 HostAddress",
        "link n1/cx3 HasUpper",
        "link n1/cx4 EnslavedTo",
        "link n1/cx5 PassthruInUse",
        "link n1/cxtun KindNotSupported",
        "part n1/cx-loser Ready False NoMatchingLink",
        "pool cx-loser Ready False NodesNotReady",
        "pool cx-loser Degraded True NodesDegraded",
        "pool cx-loser Available False NoNodeServing",
        "link n1/cx7 NameNotUsable",
        "link n1/cx10 CapacityReached",
        "part n1/cx-dry Ready False DryRun",
        "pool cx-dry Ready False DryRun",
        "pool cx-winner Ready True AllNodesReady",
        "part n1/cx-winner Ready True Serving",
        "part n1/cx-winner Degraded False AsExpected",
        "pool cx-winner Degraded False AsExpected",
        "pool cx-winner Available True NodesServing",
        "pool cx-winner Accepted True Valid",
        "pool cx-winner Progressing False UpToDate",
        "pool cx-winner NetworksReady True NoNetworks",
    ] {
        scene.reach(fact)?;
    }
    // The link has a pool; the reason is for one that nobody else has.
    scene.edit("cx-winner", r#"{"spec": {"advertisement": "DryRun"}}"#)?;
    scene.heals("pool cx-loser Ready True AllNodesReady")?;
    scene.edit("cx-excluded", r#"{"spec": {"exclude": null}}"#)?;
    scene.edit("cx-limit", r#"{"spec": {"capacity": {"perNode": null}}}"#)?;
    scene.edit(
        "cx-dry",
        r#"{"spec": {"advertisement": "Enabled", "links": [{"names": ["cx0"]}], "priority": 9}}"#,
    )?;
    scene.ip("route del default dev cx1 metric 50000
         addr del 192.0.2.1/32 dev cx2
         link del cxupper
         link set cx4 nomaster
         link del cxpass
         link set cxbr up")?;
    scene.links(21..=21)?;
    scene.edit("cx-kind", r#"{"spec": {"links": [{"names": ["cx21"]}]}}"#)?;
    scene.edit("cx-name", r#"{"spec": {"advertisement": "DryRun"}}"#)?;
    for pool in
        ["cx-route", "cx-address", "cx-upper", "cx-port", "cx-passthru", "cx-kind", "cx-limit", "cx-dry"]
    {
        scene.heals(&format!("pool {pool} Ready True AllNodesReady"))?;
    }
    // The former owner of the link loses it to the pool with the higher priority.
    scene.heals("link n1/cx0 -")?;
    scene.heals("part n1/cx-excluded Ready False NoMatchingLink")
}

/// Links that pools have and cannot use.
pub(crate) fn unhealthy(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(11..=13)?;
    let health = "health: {downDelaySeconds: 0, upDelaySeconds: 0}";
    scene.pool("cx-health", &format!("  links: [{{names: [cx11, cx12]}}]\n  {health}\n"))?;
    scene.pool("cx-mtu", "  links: [{names: [cx13]}]\n  macvtap: {mtu: 9000}\n")?;
    scene.heals("pool cx-health Ready True AllNodesReady")?;
    scene.reach("link n1/cx13 MtuTooSmall")?;
    scene.reach("part n1/cx-mtu Degraded True MtuTooSmall")?;
    scene.reach("node n1 Degraded True PoolsDegraded")?;

    scene.ip("link set cx11 down")?;
    scene.reach("link n1/cx11 AdminDown")?;
    scene.reach("part n1/cx-health Degraded True LinksUnhealthy")?;
    scene.reach("pool cx-health Degraded True NodesDegraded")?;
    scene.ip("link set cy12 down")?;
    scene.reach("link n1/cx12 NoCarrier")?;
    scene.reach("part n1/cx-health Ready False NoHealthyLink")?;

    scene.ip("link set cx11 up\nlink set cy12 up\nlink set cx13 mtu 9000\nlink set cy13 mtu 9000")?;
    scene.heals("pool cx-health Ready True AllNodesReady")?;
    scene.heals("pool cx-health Degraded False AsExpected")?;
    scene.heals("pool cx-mtu Ready True AllNodesReady")
}
