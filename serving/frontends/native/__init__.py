"""The front end in Rust (native/): connections, gRPC, HTTP, batches and metrics there; here the model, once a batch."""
