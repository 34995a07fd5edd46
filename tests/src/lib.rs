//! End-to-end tests of gpuvm.
