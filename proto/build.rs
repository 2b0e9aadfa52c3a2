//! Compiles the interfaces with a protobuf compiler written in Rust: nobody has to install protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["deviceplugin/v1beta1/api.proto", "podresources/v1/api.proto"] {
        println!("cargo::rerun-if-changed={file}");
        let descriptors = protox::compile([file], ["."])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
