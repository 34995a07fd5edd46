//! gpuvm-qmp.
