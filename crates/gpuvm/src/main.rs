//! The gpuvm binary.
fn main() {}
