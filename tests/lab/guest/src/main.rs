//! The init of the lab guest.
fn main() {}
