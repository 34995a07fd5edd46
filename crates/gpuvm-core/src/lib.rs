//! gpuvm-core.
