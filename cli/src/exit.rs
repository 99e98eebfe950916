//! What the program ends with, as Weave Net's scripts expect it.

/// Done.
pub const OK: u8 = 0;
/// Not done; the reason is on standard error.
pub const ERROR: u8 = 1;
/// `launch`: a router runs already.
pub const ALREADY_RUNNING: u8 = 3;
/// The router says that there is no such name, peer, container or service.
pub const NOT_FOUND: u8 = 4;
