//! An emulated container: a child of its host in namespaces of its own, which asks weft's resolver
//! for names and has no link but `lo` until `weft attach` gives it one.

use anyhow::Result;
use weft_net::sandbox;

use super::furnish::{self, Names, Resolver};
use super::layout::Place;
use super::links::Links;

/// Makes the container.
pub(crate) fn set_up(number: u16) -> Result<()> {
    let container = Place::Container(number).to_string();
    sandbox::cut_off_mounts()?;
    sandbox::mount_proc()?;
    sandbox::mount_sys()?;
    sandbox::set_hostname(&container)?;
    furnish::container(&Names {
        own: &container,
        hosts: &[],
        resolver: Some(Resolver::WEFT),
    })?;
    Links::open()?.loopback()
}
