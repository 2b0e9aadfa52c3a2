//! The kubelet's side of the device plugin interface, and its pod resources.

use super::{DEADLINE, Node, eventually};
use macvtap_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use macvtap_proto::deviceplugin::registration_server::{Registration, RegistrationServer};
use macvtap_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty, PreStartContainerRequest,
    PreferredAllocationRequest, RegisterRequest,
};
use macvtap_proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use macvtap_proto::podresources::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

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
    pods: Vec<(String, String, String)>,
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
        let double = Double { directory: directory.clone(), state: Arc::clone(&state) };
        let guard = runtime.enter();
        let lister = UnixListener::bind(&pod_resources).unwrap();
        let pods = PodResourcesListerServer::new(Pods(Arc::clone(&state)));
        runtime
            .spawn(Server::builder().add_service(pods).serve_with_incoming(UnixListenerStream::new(lister)));
        let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
        let server = Server::builder().add_service(RegistrationServer::new(double));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
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

    /// How often a stream's end made devices unhealthy.
    pub(crate) fn losses(&self) -> usize {
        self.state.lock().unwrap().losses
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

    /// Lists no pod with a device any more.
    pub(crate) fn remove_pods(&self) {
        self.state.lock().unwrap().pods.clear();
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

    /// Allocates whole NICs for one container; gives what the container is told.
    pub(crate) fn allocate_nics(
        &self,
        resource: &str,
        ids: &[&str],
    ) -> Result<ContainerAllocateResponse, Status> {
        self.allocate_nics_of(resource, &[ids]).map(|mut containers| containers.remove(0))
    }

    /// The same for a pod's containers in one request.
    pub(crate) fn allocate_nics_of(
        &self,
        resource: &str,
        containers: &[&[&str]],
    ) -> Result<Vec<ContainerAllocateResponse>, Status> {
        let mut client = self.client(resource);
        let requests = containers.iter().map(|ids| ContainerAllocateRequest {
            devices_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        });
        let request = AllocateRequest { container_requests: requests.collect() };
        Ok(self.block_on(client.allocate(request))?.into_inner().container_responses)
    }

    pub(crate) fn remove_pod(&self, name: &str) {
        self.state.lock().unwrap().pods.retain(|(pod, ..)| pod != name);
    }

    /// Allocates devices for one container; gives host and container paths.
    pub(crate) fn allocate(&self, resource: &str, ids: &[&str]) -> Result<Vec<(String, String)>, Status> {
        self.allocate_pod(resource, &[ids]).map(|mut containers| containers.remove(0))
    }

    /// Allocates for a pod's containers in one request.
    pub(crate) fn allocate_pod(
        &self,
        resource: &str,
        containers: &[&[&str]],
    ) -> Result<Vec<Vec<(String, String)>>, Status> {
        let mut client = self.client(resource);
        let container_requests = containers
            .iter()
            .map(|ids| ContainerAllocateRequest {
                devices_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            })
            .collect();
        let answer = self.block_on(client.allocate(AllocateRequest { container_requests }))?.into_inner();
        let containers = answer.container_responses.into_iter().map(|container| {
            assert!(
                container.envs.is_empty() && container.mounts.is_empty() && container.cdi_devices.is_empty()
            );
            let devices = container.devices.into_iter().map(|device| {
                assert_eq!(device.permissions, "rw");
                (device.host_path, device.container_path)
            });
            devices.collect()
        });
        Ok(containers.collect())
    }

    pub(crate) fn pre_start(&self, resource: &str, ids: &[&str]) -> Result<(), Status> {
        let mut client = self.client(resource);
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        self.block_on(client.pre_start_container(PreStartContainerRequest { devices_ids })).map(|_| ())
    }

    pub(crate) fn prefer(&self, resource: &str, available: &[&str], size: i32) -> Vec<String> {
        let mut client = self.client(resource);
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_i_ds: available.iter().map(|id| (*id).to_owned()).collect(),
                must_include_device_i_ds: Vec::new(),
                allocation_size: size,
            }],
        };
        let answer = self.block_on(client.get_preferred_allocation(request)).unwrap().into_inner();
        answer.container_responses.into_iter().next().unwrap().device_i_ds
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

struct Double {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

#[tonic::async_trait]
impl Registration for Double {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument(format!("version {}", request.version)));
        }
        let socket = self.directory.join(&request.endpoint);
        let channel = connect(&socket).await?;
        // As the kubelet: calls back before it answers.
        let mut client = DevicePluginClient::new(channel.clone());
        let resource = request.resource_name;
        self.state.lock().unwrap().clients.insert(resource.clone(), request.endpoint.clone());
        let options = client.get_device_plugin_options(Empty {}).await;
        if options.is_err() {
            // The entry by name goes; endpoint and devices stay.
            self.state.lock().unwrap().clients.remove(&resource);
        }
        let options = options?.into_inner();
        assert_eq!(
            Some(options),
            request.options,
            "options differ between Register and GetDevicePluginOptions"
        );
        {
            let mut state = self.state.lock().unwrap();
            state.registrations += 1;
            state.plugins.insert(
                resource.clone(),
                Plugin {
                    endpoint: request.endpoint.clone(),
                    options,
                    registered_at: Instant::now(),
                    devices: None,
                    lists: 0,
                    listed_at: Instant::now(),
                    connected: true,
                    channel,
                },
            );
        }
        let (state, endpoint) = (Arc::clone(&self.state), request.endpoint);
        if !state.lock().unwrap().registers_only {
            tokio::spawn(async move { follow(client, state, resource, endpoint).await });
        }
        Ok(Response::new(Empty {}))
    }
}

async fn connect(socket: &Path) -> Result<Channel, Status> {
    let endpoint = Endpoint::try_from(format!("unix:{}", socket.display()));
    let endpoint = endpoint.map_err(|error| Status::internal(error.to_string()))?;
    endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))
}

async fn follow(
    mut client: DevicePluginClient<Channel>,
    state: Arc<Mutex<State>>,
    resource: String,
    endpoint: String,
) {
    let Ok(answer) = client.list_and_watch(Empty {}).await else { return };
    let mut lists = answer.into_inner();
    loop {
        // Looks from time to time whether this stream was dropped by the test.
        let next = tokio::time::timeout(Duration::from_millis(5), lists.message()).await;
        if matches!(next, Ok(Ok(None) | Err(_))) {
            let late = state.lock().unwrap().notices_after;
            tokio::time::sleep(late).await;
        }
        let mut state = state.lock().unwrap();
        let dropped = !state.plugins.contains_key(&resource);
        let current = state.plugins.get_mut(&resource).filter(|plugin| plugin.endpoint == endpoint);
        match (next, current) {
            (Err(_), _) if dropped => return,
            (Err(_), _) | (Ok(Ok(Some(_))), None) => {}
            (Ok(Ok(Some(list))), Some(plugin)) => {
                plugin.devices = Some(list.devices);
                plugin.lists += 1;
                plugin.listed_at = Instant::now();
            }
            (Ok(_), _) => {
                if state.clients.remove(&resource).is_some() {
                    state.losses += 1;
                    if let Some(plugin) = state.plugins.get_mut(&resource) {
                        plugin.connected = false;
                    }
                }
                return;
            }
        }
    }
}

struct Pods(Arc<Mutex<State>>);

#[tonic::async_trait]
impl PodResourcesLister for Pods {
    async fn list(
        &self,
        _request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let state = self.0.lock().unwrap();
        let pods = state.pods.iter().map(|(name, resource, device)| PodResources {
            name: name.clone(),
            namespace: "default".to_owned(),
            containers: vec![ContainerResources {
                name: "c".to_owned(),
                devices: vec![ContainerDevices {
                    resource_name: resource.clone(),
                    device_ids: vec![device.clone()],
                }],
            }],
        });
        Ok(Response::new(ListPodResourcesResponse { pod_resources: pods.collect() }))
    }
}

/// Waits until something is so.
pub(crate) fn await_true(what: &str, mut look: impl FnMut() -> bool) {
    eventually(what, || look().then_some(()));
}
