//! Every reason the API states, in one place. They are stable: people script against them.

use std::fmt;

macro_rules! reasons {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])+ $variant:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])+ $variant,)+ }

        impl $name {
            /// All of them, in the order of their definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in the API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a link is in no pool, or why its devices are unhealthy (`status.links[].reason` of a node state).
    pub enum LinkReason {
        /// No pool of this node selects it.
        NotSelected,
        /// A pool selects it and excludes it again.
        Excluded,
        /// It carries a default route, and the pool leaves such links out.
        DefaultRoute,
        /// The host has an address on it, and the pool takes whole links.
        HostAddress,
        /// Another link is built on it, and the pool takes whole links.
        HasUpper,
        /// It is a port of a bond, bridge or team; the macvtap belongs on that one.
        EnslavedTo,
        /// A macvtap in passthru mode has it, ours or not.
        PassthruInUse,
        /// The kernel makes no macvtap on a link of this kind, or the pool's type needs a NIC.
        KindNotSupported,
        /// The kernel has no macvtap.
        KernelWithoutMacvtap,
        /// Another pool has it.
        LostToPool,
        /// With `resourcePer: Link`: its name cannot be the name of a resource, or another resource has that name.
        NameNotUsable,
        /// The node's limit of the pool is reached.
        CapacityReached,
        /// Its pool is being deleted; devices in use remain until their pods are gone.
        Draining,
        /// It has no carrier.
        NoCarrier,
        /// It is administratively down.
        AdminDown,
        /// It is gone, and devices on it are in use.
        LinkGone,
        /// Another NIC has its name now; devices of the old one are being drained.
        LinkReplaced,
        /// Its devices in use have the earlier mode; the new one holds when the last of them is free.
        ModeChangePending,
        /// Its MTU is smaller than the pool's.
        MtuTooSmall,
        /// Its MTU was smaller while pods had devices on it; theirs still is.
        MtuLowered,
        /// It is a VLAN that leaves its tags in place, so that pods of this node cannot reach one another.
        HeadersNotReordered,
        /// It is a virtual function, which may pass only the frames of a few MAC addresses.
        FewMacFilters,
        /// A link of the node that is not ours has the index of one of its devices.
        IndexTaken,
        /// It is a NIC that a pod has as a whole (type `HostDevice`); it comes back when the pod ends.
        InPod,
    }
}

reasons! {
    /// Reasons of the conditions of one pool on one node (`status.pools[].conditions` of a node state).
    pub enum NodePoolReason {
        /// Its devices are registered and one of them at least is healthy.
        Serving,
        /// It is applied, and nothing is wrong.
        AsExpected,
        /// Its resource is being registered with the kubelet.
        Registering,
        /// It matches links and registers nothing, as asked.
        DryRun,
        /// No link of the node is the pool's; the links' own reasons say why.
        NoMatchingLink,
        /// It has links, and none of them is healthy.
        NoHealthyLink,
        /// Some of its links are unhealthy.
        LinksUnhealthy,
        /// Links vanished under running pods.
        DevicesDead,
        /// The kubelet does not answer.
        KubeletUnreachable,
        /// The kubelet refused the resource.
        RegistrationFailed,
        /// The device table could not be written; the last list is served.
        TableNotWritten,
        /// Runtimes do not find the CNI plugin.
        PluginMissing,
        /// Another resource on this node has its name.
        ResourceNameTaken,
        /// The changed mode waits for devices in use.
        ModeChangePending,
        /// A link's MTU is smaller than the pool's.
        MtuTooSmall,
        /// Links of the node that are not ours have indexes of devices.
        IndexTaken,
        /// It is being deleted, and devices are in use.
        Draining,
        /// It is being deleted, and no device is in use.
        Drained,
        /// This version of the agent cannot do what the pool asks.
        NotSupported,
    }
}

reasons! {
    /// Reasons of the conditions of a node state as a whole.
    pub enum NodeReason {
        /// Every pool is ready; or there is none.
        AsExpected,
        /// Pools are not ready; their own conditions say why.
        PoolsNotReady,
        /// Pools are degraded; their own conditions say why.
        PoolsDegraded,
        /// The kubelet does not answer.
        KubeletUnreachable,
        /// Runtimes do not find the CNI plugin.
        PluginMissing,
        /// Nobody else's plugin is in the CNI directory: it is the wrong one, most likely.
        NoOtherPlugin,
        /// The spec cannot be read by this version of the agent; the last one is served.
        SpecNotReadable,
    }
}

reasons! {
    /// Reasons of the conditions of a pool.
    pub enum PoolReason {
        /// Accepted: it makes sense together with all others.
        Valid,
        /// Not accepted: an older pool has the resource name.
        ResourceNameConflict,
        /// Not accepted: a label selector that no object can be compared with; a looser schema let it in.
        InvalidSelector,
        /// Not accepted: the object cannot be read, because another release or a looser schema let it in.
        NotReadable,
        /// Ready: every matched node that reports offers a healthy device.
        AllNodesReady,
        /// Not looked at yet: the operator has not reported on the pool.
        Pending,
        /// Not ready: no node that runs the agent matches.
        NoMatchingNodes,
        /// Not ready: nodes match, and none of them has a matching link.
        NoMatchingLinks,
        /// Available: at least one node serves a healthy device.
        NodesServing,
        /// Not available: no node serves a healthy device.
        NoNodeServing,
        /// Not ready: some nodes are not; see the samples.
        NodesNotReady,
        /// Not ready, and without networks, as asked: nothing is registered.
        DryRun,
        /// Not ready, not progressing, and without networks: the pool is not accepted.
        NotAccepted,
        /// Progressing: nodes are still applying the last change.
        NodesUpdating,
        /// Not progressing: every node that answers has applied the last change.
        UpToDate,
        /// Not progressing: more of the changed nodes are not well than a staged rollout allows; it goes on when they are.
        RolloutHalted,
        /// Not degraded.
        AsExpected,
        /// Degraded: nodes report problems; see the samples.
        NodesDegraded,
        /// Degraded: nodes have not answered for 90 seconds.
        NodesUnreachable,
        /// Networks are in place.
        AllNetworksReady,
        /// The pool asks for no network.
        NoNetworks,
        /// A network attachment definition of this name is not ours; it is left alone.
        NADConflict,
        /// A namespace that is named does not exist (yet).
        NamespaceNotFound,
        /// The cluster has no network attachment definitions: Multus is not installed.
        NADKindMissing,
        /// A network could not be written; it is tried again.
        NetworkWriteFailed,
        /// With `resourcePer: Link`: two links yield the same name of a network, or one yields none.
        NetworkNameNotUsable,
        /// Networks are still being written.
        NetworksUpdating,
        /// Terminating: devices are in use.
        DevicesInUse,
        /// Terminating: no device is in use, and nodes are withdrawing the pool.
        NodesDraining,
        /// Terminating: networks are being removed.
        RemovingNetworks,
        /// The pool is being deleted.
        Terminating,
    }
}

reasons! {
    /// Reasons of samples in a pool's status that no agent states.
    pub enum SampleReason {
        /// The agent of the node has not answered for 90 seconds.
        Unreachable,
        /// The node should run an agent and has not started one for 3 minutes.
        AgentNotStarted,
        /// The agent of the node has not applied the last change yet.
        Updating,
        /// A staged rollout has not reached the node yet, or an earlier pool of this name or resource is still there.
        Waiting,
        /// What the agent says of the pool cannot be read: operator and agent are of different releases.
        StatusNotReadable,
        /// A node can have 64 pools, and it has as many that come first or still have devices in use.
        TooManyPools,
        /// The Node is being deleted and did not hear of the last change; it is not waited for.
        NodeTerminating,
    }
}

reasons! {
    /// Reasons of the operator's Events about a pool, in addition to those of its conditions.
    pub enum EventReason {
        /// A network attachment definition of the pool had been changed, and is again as the pool has it.
        NetworkRepaired,
        /// A network attachment definition that was restored from a backup, or left by an earlier pool of the same name,
        /// belongs to the pool now.
        NetworkAdopted,
        /// The pool was removed, and finalizers of others keep network attachment definitions of it that are deleted.
        NetworksKept,
        /// An unreachable node was not waited for, as an annotation of the deleted pool asks.
        ReleasedWithoutDrain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_one_camel_case_word() {
        let words = LinkReason::ALL
            .iter()
            .map(|r| r.as_str())
            .chain(NodePoolReason::ALL.iter().map(|r| r.as_str()))
            .chain(NodeReason::ALL.iter().map(|r| r.as_str()))
            .chain(PoolReason::ALL.iter().map(|r| r.as_str()))
            .chain(SampleReason::ALL.iter().map(|r| r.as_str()))
            .chain(EventReason::ALL.iter().map(|r| r.as_str()));
        for word in words {
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
            assert!(word.bytes().all(|b| b.is_ascii_alphanumeric()) && word.len() <= 64, "{word}");
        }
    }
}
