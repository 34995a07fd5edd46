//! gpuvm-testkit.
