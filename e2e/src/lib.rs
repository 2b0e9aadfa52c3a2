//! A real Kubernetes on one machine, as a value.
//!
//! [`Cluster`] runs etcd, the control plane and one or two nodes as ordinary processes: every node has a network and
//! a mount namespace of its own, its kubelet and containerd are the real ones, and nothing of it is visible outside
//! but a port on 127.0.0.1. [`ApiServer`] is the small sister for tests that need an API and no node.
//!
//! All that is needed is built from the Go modules pinned in `components/` and unpacked from Debian packages; what is
//! made lives below `target/e2e` of the checkout, so two checkouts and two clusters of one checkout never meet.
//!
//! Errors are [`anyhow::Error`]: nobody here decides by the kind of a failure, it is always reported and ends the
//! run, so what counts is the chain of causes.

pub mod api_server;
pub mod bench_compare;
pub mod bench_pods;
pub mod bench_report;
pub mod cgroups;
pub mod chaos;
pub mod chart_readme;
pub mod cluster;
pub mod components;
pub mod containerfile;
pub mod control_plane;
pub mod crun;
pub mod demo;
pub mod diagnose;
pub mod first_release;
pub mod guest_lab;
pub mod images;
pub mod install;
pub mod kube_ovn;
pub mod kubectl;
pub mod kubevirt;
pub mod layout;
pub(crate) mod many_pods;
pub mod multus;
pub mod namespaces;
pub mod node;
pub(crate) mod past;
pub mod pki;
pub mod prerequisites;
pub mod process;
pub mod progress;
pub mod registry;
pub mod relay;
pub mod release;
pub mod results;
pub mod soak;
pub mod suite;
pub mod traces;
pub mod trixie;
pub mod wait;

pub use api_server::{AUDIT_LOG, ApiServer};
pub use cluster::{Cluster, Multus, Options};
pub use kube_ovn::KubeOvn;
pub use kubectl::Kubectl;
pub use node::Node;
