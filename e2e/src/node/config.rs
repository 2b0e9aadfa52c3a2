//! What is written for a node's daemons: the configuration of containerd, kubelet, kube-proxy and of the pods' default
//! network.

use anyhow::Result;
use serde_json::json;

use super::{Kind, Node};
use crate::layout::POD_CIDR;
use crate::pki::Pki;
use crate::{crun, images, registry};

impl Node {
    /// The default network of its pods.
    pub fn pod_network(&self) -> serde_json::Value {
        // 0.4.0 is what Debian's plugins speak.
        json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": self.layout.pod_cidr()}]],
                      "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]})
    }

    pub(super) fn kubelet_config(&self, pki: &Pki) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": self.layout.address(),
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": false},
                "x509": {"clientCAFile": pki.file("ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.layout.cgroup()),
            "failCgroupV1": false, "failSwapOn": false,
            // Lowering it needs a capability that a container does not have.
            "oomScoreAdj": 0,
            // Nobody answers there; without an address the kubelet warns about every pod.
            "resolvConf": "", "clusterDomain": "cluster.local", "clusterDNS": ["10.96.0.10"],
            // 110 pods of `bench-pods` and those of the cluster itself.
            "maxPods": 130,
            // The machine is shared and its disk is not ours to judge.
            "evictionHard": {
                "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99, "imageMinimumGCAge": "8760h",
            // The step at which a changed device count reaches the Node.
            "nodeStatusUpdateFrequency": "4s", "nodeStatusReportFrequency": "10s",
            "serializeImagePulls": false, "shutdownGracePeriod": "0s", "logging": {"verbosity": 2},
        })
    }

    pub(super) fn proxy_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.layout.dir().join("kube-proxy.kubeconfig")},
            "hostnameOverride": self.name(), "mode": "iptables", "clusterCIDR": POD_CIDR,
            "bindAddress": self.layout.address(),
            "healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
            // The limit belongs to the machine, not to this network namespace.
            "conntrack": {"maxPerCore": 0},
        })
    }

    pub(super) fn containerd_config(&self) -> Result<String> {
        let template = match self.kind {
            Kind::Current | Kind::Moved => CONTAINERD_2,
            Kind::Debian => CONTAINERD_1,
        };
        let registries = registry::mirror(&self.layout)?;
        let words = [
            ("@RUNC@", self.runc().display().to_string()),
            ("@CRUN@", crun::program(&self.layout.cluster.checkout).display().to_string()),
            ("@NETNS@", (self.kind == Kind::Moved).to_string()),
            ("@PAUSE@", images::PAUSE.to_owned()),
            ("@REGISTRIES@", registries.display().to_string()),
        ];
        Ok(words.iter().fold(template.to_owned(), |config, (mark, word)| config.replace(mark, word)))
    }
}

const CONTAINERD_2: &str = r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "@PAUSE@"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "@REGISTRIES@"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = @NETNS@
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = "@RUNC@"
        SystemdCgroup = false
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
        BinaryName = "@CRUN@"
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 1
"#;

const CONTAINERD_1: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "@PAUSE@"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "@REGISTRIES@"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "@RUNC@"
        SystemdCgroup = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
        BinaryName = "@CRUN@"
        SystemdCgroup = false
"#;
