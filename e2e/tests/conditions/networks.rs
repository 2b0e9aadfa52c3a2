//! What becomes of a pool's networks.

use crate::Scene;
use anyhow::Result;
use serde_json::json;

pub(crate) fn networks(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(15..=15)?;
    scene.ip("link add cxl.1 type veth peer name cyl.1
         link add cxl-1 type veth peer name cyl-1
         link set cxl.1 up
         link set cyl.1 up
         link set cxl-1 up
         link set cyl-1 up")?;
    let namespace = scene.stage.namespace.clone();
    scene.stage.network("cx-taken", None, "")?;
    scene.stage.kubectl.apply(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: cx-full}}\n\
         - {apiVersion: v1, kind: ResourceQuota, metadata: {name: none, namespace: cx-full}, \
         spec: {hard: {count/network-attachment-definitions.k8s.cni.cncf.io: \"0\"}}}\n",
    )?;
    let to = |name: &str, namespace: &str| {
        json!({"spec": {"networks": [{"name": name, "namespaces": {"names": [namespace]}}]}}).to_string()
    };
    scene.pool("cx-net", "  links: [{names: [cx15]}]\n")?;
    scene.edit("cx-net", &to("cx-taken", &namespace))?;
    scene.reach("pool cx-net NetworksReady False NADConflict")?;
    scene.edit("cx-net", &to("cx-free", "cx-late"))?;
    scene.reach("pool cx-net NetworksReady False NamespaceNotFound")?;
    scene.stage.kubectl.apply("{apiVersion: v1, kind: Namespace, metadata: {name: cx-late}}")?;
    scene.heals("pool cx-net NetworksReady True AllNetworksReady")?;
    scene.edit("cx-net", &to("cx-free", "cx-full"))?;
    scene.reach("pool cx-net NetworksReady False NetworkWriteFailed")?;
    scene.stage.kubectl.run(&["delete", "-n", "cx-full", "resourcequota", "none"])?;
    // No event tells that a quota is gone.
    scene.within(std::time::Duration::from_mins(1), "pool cx-net NetworksReady True AllNetworksReady")?;

    let each = "  resourcePer: Link\n  links: [{names: [cxl.1, cxl-1]}]\n  networks: [{name: \"m-{link}\", namespaces: {names: [conditions]}}]\n";
    scene.pool("cx-names", each)?;
    scene.reach("pool cx-names NetworksReady False NetworkNameNotUsable")?;
    scene.edit("cx-names", r#"{"spec": {"links": [{"names": ["cxl.1"]}]}}"#)?;
    scene.heals("pool cx-names NetworksReady True AllNetworksReady")?;
    scene.stage.kubectl.run(&["delete", "namespace", "cx-late", "cx-full", "--wait=false"]).map(drop)
}
