//! gpuvm-run.
