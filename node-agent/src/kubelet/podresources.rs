//! Which devices pods have, as the kubelet says.

use crate::pods::{Listing, PodName};
use macvtap::device_id::DeviceId;
use macvtap_proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use macvtap_proto::podresources::{ListPodResourcesRequest, ListPodResourcesResponse};
use std::path::Path;
use std::time::Duration;
use tonic::transport::Endpoint;

/// The kubelet did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PodResourcesError {
    /// No connection.
    #[error("reach the kubelet's pod resources")]
    Connect(#[source] tonic::transport::Error),
    /// No answer.
    #[error("list pod resources: {0}")]
    List(String),
    /// No answer in time.
    #[error("the kubelet did not list pod resources within {} s", TIMEOUT.as_secs())]
    Silent,
}

const TIMEOUT: Duration = Duration::from_secs(10);

/// A node with hundreds of pods and thousands of devices; the default is too small for those.
const ANSWER_MAX: usize = 64 << 20;

/// Returns what the kubelet lists; none where it serves no list. `device` returns which device of this agent a resource's full name
/// and an ID mean.
pub async fn list(
    socket: &Path,
    device: impl Fn(&str, &str) -> Option<DeviceId>,
) -> Result<Option<Listing>, PodResourcesError> {
    if !socket.exists() {
        return Ok(None);
    }
    let answer = tokio::time::timeout(TIMEOUT, async {
        let endpoint = Endpoint::try_from(format!("unix:{}", socket.display()));
        let channel = endpoint.map_err(PodResourcesError::Connect)?.connect().await;
        let channel = channel.map_err(PodResourcesError::Connect)?;
        let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(ANSWER_MAX);
        let answer = client.list(ListPodResourcesRequest {}).await;
        answer.map_err(|status| PodResourcesError::List(status.message().to_owned()))
    });
    let answer = answer.await.map_err(|_| PodResourcesError::Silent)??.into_inner();
    Ok(Some(listing(answer, device)))
}

/// Returns what an answer says: every pod, and the devices that are ours.
pub fn listing(answer: ListPodResourcesResponse, device: impl Fn(&str, &str) -> Option<DeviceId>) -> Listing {
    let mut listing = Listing::default();
    for pod in answer.pod_resources {
        let name = PodName { namespace: pod.namespace, name: pod.name };
        for devices in pod.containers.into_iter().flat_map(|container| container.devices) {
            let ours = devices.device_ids.iter().filter_map(|id| device(&devices.resource_name, id));
            listing.devices.extend(ours.map(|id| (id, name.clone())));
        }
        listing.pods.push(name);
    }
    listing
}
