//! The API: kinds, their rules, and the words operator, agent and documentation share.
//!
//! The types are the source of everything: the CRDs in `crds/yaml` and in the chart are generated from them, and doc
//! comments are what `kubectl explain` prints.

pub mod condition;
pub mod generate;
pub mod reference;
mod schema;
#[expect(unreachable_pub, reason = "the derive macro of rules repeats each type inside a function")]
#[expect(clippy::doc_markdown, reason = "doc comments are what `kubectl explain` prints, as plain text")]
pub mod v1alpha1;

/// The API group, also the default prefix of resource names.
pub const GROUP: &str = "macvtap.network.kubevirt.io";

/// Field manager of everything the operator writes.
pub const OPERATOR_FIELD_MANAGER: &str = "macvtap-operator";

/// Field manager of a node state's status.
pub const AGENT_FIELD_MANAGER: &str = "macvtap-node-agent";

/// Keeps a deleted pool until its devices are drained and its networks removed.
pub const POOL_FINALIZER: &str = "macvtap.network.kubevirt.io/drain";

/// Label on a network attachment definition we made: the name of its pool.
pub const POOL_LABEL: &str = "macvtap.network.kubevirt.io/pool";

/// Label on a network attachment definition we made: the UID of its pool, so that one made for an earlier pool of the
/// same name is known as such.
pub const POOL_UID_LABEL: &str = "macvtap.network.kubevirt.io/pool-uid";

/// Label on a node configuration the operator made, with an empty value: it deletes only such.
pub const CONFIG_LABEL: &str = "macvtap.network.kubevirt.io/node-config";

/// Annotation on a pool being deleted: names of nodes, separated by commas, whose agents are unreachable and are not
/// waited for.
pub const RELEASE_ANNOTATION: &str = "macvtap.network.kubevirt.io/release-without-drain";

/// Annotation by which Multus learns which resource a network needs.
pub const RESOURCE_NAME_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";
