//! Pods whose macvtaps get their addresses from kube-ovn: its controller, daemons and CNI plugin are the real ones, behind
//! kubelet, containerd and Multus, and the product is installed by its chart.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

mod addresses;
mod by_hand;
mod examples;
mod failures;
mod mistakes;
mod pods;
mod stage;
mod table;
mod thick;
