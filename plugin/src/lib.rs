//! Putting containers on the network, from outside the router.
//!
//! [`Target`] and [`AddressSpec`] are what people type; [`docker`] knows which process a container
//! is.
#![forbid(unsafe_code)]

pub mod address;
pub mod docker;
pub mod target;

pub use address::{AddressSpec, ParseAddressError};
pub use target::{ParseTargetError, Target};
