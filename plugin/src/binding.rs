//! What a container's interface will be like, told to the router before there is one: so that other hosts
//! know where the container is when its first frame comes.
//!
//! A router that does not take it is no reason not to attach a container: it is reached all the same, once
//! it has spoken.

use std::net::IpAddr;

use weft_api::Client;
use weft_api::types::Bind;
use weft_net::attach::inspect;
use weft_net::netns::NetNs;
use weft_wire::MacAddr;

use crate::attach::AttachError;

/// A container's interface as it is before it is attached: its MAC and its addresses. One that is not
/// there yet has none, and gets a MAC drawn at random.
pub(crate) async fn foresee(
    ns: &NetNs,
    ifname: &str,
) -> Result<(MacAddr, Vec<IpAddr>), AttachError> {
    let interfaces = inspect(ns, ifname).await?;
    match interfaces.into_iter().find(|view| view.name == ifname) {
        Some(view) => {
            let addresses = view.addresses.into_iter().map(|(addr, _)| addr);
            Ok((view.mac, addresses.collect()))
        }
        None => Ok((draw_mac()?, Vec::new())),
    }
}

/// Tells the router of it. What is wrong, if anything, comes back as a note.
pub(crate) async fn tell(client: &Client, binding: &Bind) -> Option<String> {
    let error = client.bind(binding).await.err()?;
    let hint = error.hint().map(|hint| format!(" ({hint})"));
    let hint = hint.unwrap_or_default();
    Some(format!(
        "other hosts do not know its MAC until it sends something: {error}{hint}"
    ))
}

/// A MAC nobody else has: 46 random bits, and the two that say "no factory's" and "no group".
fn draw_mac() -> Result<MacAddr, getrandom::Error> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)?;
    let [first, ..] = &mut bytes;
    *first = (*first & !1) | 2;
    Ok(MacAddr::from_bytes(bytes))
}
