//! What the kubelet serves: registration, and the list of pods.

use super::{Plugin, State};
use macvtap_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use macvtap_proto::deviceplugin::registration_server::{Registration, RegistrationServer};
use macvtap_proto::deviceplugin::{Empty, RegisterRequest};
use macvtap_proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use macvtap_proto::podresources::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::transport::server::UdsConnectInfo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Takes registrations for sockets in this directory.
pub(super) fn registration(directory: PathBuf, state: Arc<Mutex<State>>) -> RegistrationServer<Double> {
    RegistrationServer::new(Double { directory, state })
}

/// Lists pods and their devices.
pub(super) fn pods(state: Arc<Mutex<State>>) -> PodResourcesListerServer<Pods> {
    PodResourcesListerServer::new(Pods(state))
}

pub(super) struct Double {
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
        let session = Session::new(&self.state);
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
            let directory = self.directory.clone();
            tokio::spawn(async move {
                let _session = session;
                follow(client, state, resource, endpoint, directory).await;
            });
        }
        Ok(Response::new(Empty {}))
    }
}

/// One registration, from the call to the end of its stream.
struct Session(Arc<Mutex<State>>);

impl Session {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        state.lock().unwrap().sessions += 1;
        Self(Arc::clone(state))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.lock().unwrap().sessions -= 1;
    }
}

/// Replaces the checkpoint, as the kubelet does for each list and each allocation.
pub(super) fn write_checkpoint(directory: &Path, state: &State) {
    let Some(memory) = &state.memory else { return };
    let entries = memory.iter().map(|(uid, resource, device)| {
        serde_json::json!({
            "PodUID": uid, "ContainerName": "c", "ResourceName": resource, "DeviceIDs": {"-1": [device]}, "AllocResp": "",
        })
    });
    let entries: Vec<_> = entries.collect();
    let text =
        serde_json::json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 1});
    let unfinished = directory.join(".unfinished");
    std::fs::write(&unfinished, text.to_string()).unwrap();
    std::fs::rename(unfinished, directory.join("kubelet_internal_checkpoint")).unwrap();
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
    directory: PathBuf,
) {
    let Ok(answer) = client.list_and_watch(Empty {}).await else {
        state.lock().unwrap().lose(&resource);
        return;
    };
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
                write_checkpoint(&directory, &state);
            }
            (Ok(_), _) => {
                state.lose(&resource);
                return;
            }
        }
    }
}

pub(super) struct Pods(Arc<Mutex<State>>);

#[tonic::async_trait]
impl PodResourcesLister for Pods {
    async fn list(
        &self,
        request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let asker = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred?.pid());
        let mut state = self.0.lock().unwrap();
        state.askers.extend(asker);
        if let Some(reason) = state.list_error {
            return Err(Status::resource_exhausted(reason));
        }
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
