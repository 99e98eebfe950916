//! From a path and a body to an answer: which call it is, its deadline, and the form of errors.

use std::sync::atomic::Ordering;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::pool::Space;
use super::swarm;
use super::{Answer, Plugin, PluginError};

impl Plugin {
    /// Does what dockerd asks. The path is that of the request, such as `/NetworkDriver.Join`; the
    /// body is JSON, or empty.
    pub async fn answer(&self, path: &str, body: &[u8]) -> Answer {
        let call = path.trim_start_matches('/');
        let done = timeout(self.patience, self.dispatch(call, body)).await;
        let done = done.unwrap_or_else(|_| {
            Err(PluginError::Slow {
                call: call.to_owned(),
                limit: self.patience,
            })
        });
        if let Err(PluginError::Slow { .. } | PluginError::NoAddress { .. }) = done {
            self.silent.store(true, Ordering::Relaxed);
        }
        match done {
            Ok(Some(value)) => {
                debug!(call, "answered");
                answered(200, &value)
            }
            Ok(None) => {
                let text = format!("weft: there is no call {call}");
                answered(404, &json!({ "Err": text }))
            }
            Err(error) => {
                let text = error.to_string();
                warn!(call, error = text, "refused");
                // A network driver's errors are read under one key, an IPAM driver's under the other;
                // under the wrong one they would be taken for success.
                answered(200, &json!({ "Err": text, "Error": text }))
            }
        }
    }

    /// The answer, or none if there is no such call.
    async fn dispatch(&self, call: &str, body: &[u8]) -> Result<Option<Value>, PluginError> {
        let value = match call {
            "Plugin.Activate" => json!({ "Implements": ["NetworkDriver", "IpamDriver"] }),
            "NetworkDriver.GetCapabilities" => {
                json!({ "Scope": self.role.scope(), "ConnectivityScope": "global" })
            }
            "IpamDriver.GetCapabilities" => {
                json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })
            }
            "IpamDriver.GetDefaultAddressSpaces" => json!({
                "LocalDefaultAddressSpace": Space::Local.name(),
                "GlobalDefaultAddressSpace": Space::Global.name(),
            }),
            "IpamDriver.RequestPool" => to_value(&self.request_pool(read(body)?).await?)?,
            "IpamDriver.ReleasePool" => {
                self.release_pool(&read(body)?);
                json!({})
            }
            "IpamDriver.RequestAddress" => to_value(&self.request_address(read(body)?).await?)?,
            "IpamDriver.ReleaseAddress" => {
                self.release_address(read(body)?).await?;
                json!({})
            }
            "NetworkDriver.AllocateNetwork" => to_value(&swarm::allocate_network(read(body)?))?,
            "NetworkDriver.FreeNetwork" => json!({}),
            "NetworkDriver.CreateNetwork" => {
                self.create_network(read(body)?).await?;
                json!({})
            }
            "NetworkDriver.DeleteNetwork" => {
                self.delete_network(&read(body)?).await?;
                json!({})
            }
            "NetworkDriver.CreateEndpoint" => to_value(&self.create_endpoint(&read(body)?).await?)?,
            "NetworkDriver.Join" => to_value(&self.join(&read(body)?).await?)?,
            "NetworkDriver.Leave" | "NetworkDriver.DeleteEndpoint" => {
                self.remove_endpoint(&read(body)?).await?;
                json!({})
            }
            "NetworkDriver.EndpointOperInfo" => json!({ "Value": {} }),
            // Of ports dockerd's own gateway bridge takes care; of other nodes the router knows.
            "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete" => json!({}),
            _ => return Ok(None),
        };
        Ok(Some(value))
    }
}

/// A request. Those without content have no body.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PluginError> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    Ok(serde_json::from_slice(body)?)
}

fn to_value(value: &impl Serialize) -> Result<Value, PluginError> {
    Ok(serde_json::to_value(value)?)
}

fn answered(status: u16, value: &Value) -> Answer {
    let body = value.to_string().into_bytes();
    Answer { status, body }
}
