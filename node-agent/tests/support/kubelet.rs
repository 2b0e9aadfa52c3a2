//! The kubelet's side of the device plugin interface, and its pod resources.

// By path, because the tests of the guest lab take this file by its path too, and would look for its parts beside it.
#[path = "kubelet/calls.rs"]
mod calls;
#[path = "kubelet/served.rs"]
mod served;

use super::{DEADLINE, Node, eventually};
use macvtap_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use macvtap_proto::deviceplugin::{Device, DevicePluginOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};

/// What the double knows of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    pub(crate) endpoint: String,
    pub(crate) options: DevicePluginOptions,
    pub(crate) registered_at: Instant,
    /// None until the first list; empty is a list too.
    pub(crate) devices: Option<Vec<Device>>,
    /// How many lists came on this stream.
    pub(crate) lists: usize,
    /// When the last one came.
    pub(crate) listed_at: Instant,
    /// Whether the stream is open.
    pub(crate) connected: bool,
    channel: Channel,
}

impl Plugin {
    pub(crate) fn healthy(&self) -> Option<usize> {
        Some(self.devices.as_ref()?.iter().filter(|device| device.health == "Healthy").count())
    }
}

#[derive(Default)]
struct State {
    /// Somebody else reads the lists.
    registers_only: bool,
    /// Who registered a resource last, by socket. The end of any stream of the resource is blamed on this one.
    clients: BTreeMap<String, String>,
    plugins: BTreeMap<String, Plugin>,
    /// How long after a stream's end the kubelet learns of it: its threads wait for a processor as all others do.
    notices_after: Duration,
    /// How often all devices of a resource became unhealthy because a stream ended.
    losses: usize,
    registrations: usize,
    /// Registrations that are being answered or whose stream is open.
    sessions: usize,
    pods: Vec<(String, String, String)>,
    /// What the kubelet writes into its checkpoint: UIDs of pods, and the resource and ID of a device of each.
    memory: Option<Vec<(String, String, String)>>,
    /// Why pods are not listed.
    list_error: Option<&'static str>,
    /// Processes that asked which pod has which device, each as often as it did.
    askers: Vec<i32>,
}

impl State {
    /// A stream of this resource ended, or could not be opened. Says nothing of a resource whose entry by name is gone.
    fn lose(&mut self, resource: &str) {
        if self.clients.remove(resource).is_some() {
            self.losses += 1;
            if let Some(plugin) = self.plugins.get_mut(resource) {
                plugin.connected = false;
            }
        }
    }
}

/// A kubelet, until it is dropped.
pub(crate) struct Kubelet {
    directory: PathBuf,
    pod_resources: PathBuf,
    state: Arc<Mutex<State>>,
    runtime: Option<Runtime>,
}

impl Kubelet {
    /// Starts as the real one does: empties the directory, then makes its socket.
    pub(crate) fn start(node: &Node) -> Self {
        Self::start_in(node.plugins(), node.path("/var/lib/kubelet/pod-resources/kubelet.sock"), Vec::new())
    }

    /// Starts and takes registrations, and leaves reading the lists to the caller.
    pub(crate) fn start_registrar(node: &Node) -> Self {
        let kubelet = Self::start(node);
        kubelet.state.lock().unwrap().registers_only = true;
        kubelet
    }

    /// Learns of the end of a stream so much later, from now on.
    pub(crate) fn notice_ends_after(&self, time: Duration) {
        self.state.lock().unwrap().notices_after = time;
    }

    fn start_in(directory: PathBuf, pod_resources: PathBuf, pods: Vec<(String, String, String)>) -> Self {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let _ = std::fs::remove_file(entry.unwrap().path());
        }
        let _ = std::fs::remove_file(&pod_resources);
        let state = Arc::new(Mutex::new(State { pods, ..State::default() }));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let incoming = |path: &Path| UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let lister = Server::builder().add_service(served::pods(Arc::clone(&state)));
        runtime.spawn(lister.serve_with_incoming(incoming(&pod_resources)));
        let registration = served::registration(directory.clone(), Arc::clone(&state));
        let registration = Server::builder().add_service(registration);
        runtime.spawn(registration.serve_with_incoming(incoming(&directory.join("kubelet.sock"))));
        drop(guard);
        Self { directory, pod_resources, state, runtime: Some(runtime) }
    }

    /// Dies and starts again.
    pub(crate) fn restart(mut self) -> Self {
        self.kill();
        let pods = std::mem::take(&mut self.state.lock().unwrap().pods);
        Self::start_in(self.directory.clone(), self.pod_resources.clone(), pods)
    }

    /// Dies. Its socket stays behind, as a killed kubelet's does.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn registrations(&self) -> usize {
        self.state.lock().unwrap().registrations
    }

    /// How many registrations are being answered or have an open stream.
    pub(crate) fn sessions(&self) -> usize {
        self.state.lock().unwrap().sessions
    }

    /// How often a process asked which pod has which device.
    pub(crate) fn asked_by(&self, process: u32) -> usize {
        let state = self.state.lock().unwrap();
        state.askers.iter().filter(|asker| u32::try_from(**asker) == Ok(process)).count()
    }

    /// How often a stream's end made devices unhealthy.
    pub(crate) fn losses(&self) -> usize {
        self.state.lock().unwrap().losses
    }

    /// Waits until the pods of this moment have been listed: from then on the list decides what is in use.
    pub(crate) fn await_listed(&self) {
        let asked = || self.state.lock().unwrap().askers.len();
        let before = asked();
        // The first answer may be to a question that was asked before.
        await_true("pods are listed", || asked() >= before + 2);
    }

    pub(crate) fn plugin(&self, resource: &str) -> Option<Plugin> {
        self.state.lock().unwrap().plugins.get(&format!("macvtap.network.kubevirt.io/{resource}")).cloned()
    }

    /// Waits until the list of a resource is as wanted.
    pub(crate) fn await_plugin(&self, resource: &str, wanted: impl Fn(&Plugin) -> bool) -> Plugin {
        let what = || {
            format!(
                "resource {resource}, which is {:?}",
                self.plugin(resource).map(|p| (p.connected, p.healthy()))
            )
        };
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(plugin) = self.plugin(resource).filter(&wanted) {
                return plugin;
            }
            assert!(Instant::now() < deadline, "not in {DEADLINE:?}: {}", what());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until this many devices of a resource are healthy.
    pub(crate) fn await_healthy(&self, resource: &str, count: usize) -> Plugin {
        self.await_plugin(resource, |plugin| plugin.connected && plugin.healthy() == Some(count))
    }

    pub(crate) fn resources(&self) -> Vec<String> {
        self.state.lock().unwrap().plugins.keys().cloned().collect()
    }

    /// Ends the stream of a resource without a word, as a kubelet does that takes another plugin for it.
    pub(crate) fn drop_stream(&self, resource: &str) {
        let resource = format!("macvtap.network.kubevirt.io/{resource}");
        let mut state = self.state.lock().unwrap();
        state.clients.remove(&resource);
        state.plugins.remove(&resource);
    }

    /// Lists no pods but gives this reason instead, or lists them again.
    pub(crate) fn fail_lists(&self, reason: Option<&'static str>) {
        self.state.lock().unwrap().list_error = reason;
    }

    /// Lists no pod with a device any more.
    pub(crate) fn remove_pods(&self) {
        self.state.lock().unwrap().pods.clear();
    }

    /// A device that a pod has, in the kubelet's memory and its checkpoint.
    pub(crate) fn remember(&self, pod_uid: &str, device: &str) {
        let resource = device.rsplit_once("Mvp").map_or("", |(resource, _)| resource);
        let resource = format!("macvtap.network.kubevirt.io/{resource}");
        let mut state = self.state.lock().unwrap();
        let memory = state.memory.get_or_insert_default();
        memory.retain(|(.., known)| known != device);
        memory.push((pod_uid.to_owned(), resource, device.to_owned()));
        served::write_checkpoint(&self.directory, &state);
    }

    /// Forgets what a pod had, as the kubelet does when it lists pods; the checkpoint is behind then.
    pub(crate) fn forget(&self, pod_uid: &str) {
        let mut state = self.state.lock().unwrap();
        state.memory.iter_mut().for_each(|memory| memory.retain(|(pod, ..)| pod != pod_uid));
    }

    /// A pod that has a device, in pod resources.
    pub(crate) fn add_pod(&self, name: &str, device: &str) {
        let resource = device.rsplit_once("Mvp").map_or("", |(resource, _)| resource);
        self.add_pod_of(name, resource, device);
    }

    /// A pod that has a device whose name does not tell the resource.
    pub(crate) fn add_pod_of(&self, name: &str, resource: &str, id: &str) {
        let resource = format!("macvtap.network.kubevirt.io/{resource}");
        self.state.lock().unwrap().pods.push((name.to_owned(), resource, id.to_owned()));
    }

    pub(crate) fn remove_pod(&self, name: &str) {
        self.state.lock().unwrap().pods.retain(|(pod, ..)| pod != name);
    }

    pub(crate) fn client(&self, resource: &str) -> DevicePluginClient<Channel> {
        DevicePluginClient::new(self.plugin(resource).unwrap().channel)
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something is so.
pub(crate) fn await_true(what: &str, mut look: impl FnMut() -> bool) {
    eventually(what, || look().then_some(()));
}
