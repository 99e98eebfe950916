//! The arguments of `weft proxy`, as typed.

use clap::Args;

/// Put what is created through Docker's API on the network
///
/// `weft launch` starts it where there is Docker, and `weft env` leads to it. It stays when the
/// router stops; `weft reset` ends it.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Where dockerd is: unix:///PATH
    #[arg(
        long,
        env = "WEFT_DOCKER_HOST",
        value_name = "URL",
        default_value = "unix:///var/run/docker.sock"
    )]
    pub docker: String,
}
