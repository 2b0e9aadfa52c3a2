//! Version `v1alpha1` of the API.

pub mod links;
pub mod network;
pub mod nodeconfig;
pub mod nodestate;
pub mod pool;
pub mod reason;
pub mod settings;

pub use links::{LinkKind, LinkSelector};
pub use network::NetworkTemplate;
pub use nodeconfig::{MacvtapNodeConfig, MacvtapNodeConfigSpec};
pub use nodestate::{
    MacvtapNodeState, MacvtapNodeStateSpec, MacvtapNodeStateStatus, NodePool, NodePoolStatus,
};
pub use pool::{MacvtapResourcePool, MacvtapResourcePoolSpec, MacvtapResourcePoolStatus};
pub use settings::PoolSettings;
