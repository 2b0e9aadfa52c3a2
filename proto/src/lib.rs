//! The kubelet's gRPC interfaces: both sides of each, the other one for tests.

/// Device plugin interface (`deviceplugin/v1beta1/api.proto`).
pub mod deviceplugin {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::pedantic,
        clippy::use_self,
        clippy::allow_attributes_without_reason,
        reason = "generated; its documentation is the .proto file"
    )]
    tonic::include_proto!("v1beta1");
}

/// Pod resources interface (`podresources/v1/api.proto`).
pub mod podresources {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::pedantic,
        clippy::use_self,
        clippy::allow_attributes_without_reason,
        reason = "generated; its documentation is the .proto file"
    )]
    tonic::include_proto!("v1");
}
