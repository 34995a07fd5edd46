//! gpuvm-host.
