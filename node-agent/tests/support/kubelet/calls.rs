//! What the kubelet asks a device plugin.

use super::Kubelet;
use macvtap_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};
use tonic::Status;

impl Kubelet {
    /// Allocates for a pod's containers in one request; gives what each container is told.
    pub(crate) fn allocate_told(
        &self,
        resource: &str,
        containers: &[&[&str]],
    ) -> Result<Vec<ContainerAllocateResponse>, Status> {
        let requests =
            containers.iter().map(|ids| ContainerAllocateRequest { devices_ids: owned(ids) }).collect();
        let request = AllocateRequest { container_requests: requests };
        let answer = self.block_on(self.client(resource).allocate(request))?;
        Ok(answer.into_inner().container_responses)
    }

    /// Allocates whole NICs for one container; gives what the container is told.
    pub(crate) fn allocate_nics(
        &self,
        resource: &str,
        ids: &[&str],
    ) -> Result<ContainerAllocateResponse, Status> {
        self.allocate_told(resource, &[ids]).map(|mut containers| containers.remove(0))
    }

    /// Allocates devices for one container; gives host and container paths.
    pub(crate) fn allocate(&self, resource: &str, ids: &[&str]) -> Result<Vec<(String, String)>, Status> {
        self.allocate_pod(resource, &[ids]).map(|mut containers| containers.remove(0))
    }

    /// The same for a pod's containers in one request.
    pub(crate) fn allocate_pod(
        &self,
        resource: &str,
        containers: &[&[&str]],
    ) -> Result<Vec<Vec<(String, String)>>, Status> {
        let told = self.allocate_told(resource, containers)?;
        let containers = told.into_iter().map(|container| {
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
        let request = PreStartContainerRequest { devices_ids: owned(ids) };
        self.block_on(self.client(resource).pre_start_container(request)).map(|_| ())
    }

    pub(crate) fn prefer(&self, resource: &str, available: &[&str], size: i32) -> Vec<String> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_i_ds: owned(available),
                must_include_device_i_ds: Vec::new(),
                allocation_size: size,
            }],
        };
        let answer = self.block_on(self.client(resource).get_preferred_allocation(request)).unwrap();
        answer.into_inner().container_responses.remove(0).device_i_ds
    }
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}
