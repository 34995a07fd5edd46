//! gpuvm-sys.
