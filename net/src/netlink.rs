//! The way to the kernel's routing and link tables.
//!
//! A [`Netlink`] belongs to the network namespace its socket was opened in, wherever it is used
//! from afterwards. Invariant: every refusal of the kernel comes back with what was asked for and,
//! where something can be done about it, what that is.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

/// A netlink socket. Clones share it; it closes with the last one.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

/// Why the kernel did not do what was asked.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// There is no socket to ask through.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// No link has this name.
    #[error("there is no link {0:?}")]
    NoLink(String),
    /// No link can have this name.
    #[error("{0:?} cannot name a link: 1 to 15 bytes, without space, slash or colon")]
    BadName(String),
    /// The kernel refused.
    #[error("cannot {action}: {}{}", .errno.desc(), remedy(*.errno))]
    Refused {
        /// What was asked.
        action: String,
        /// Its answer.
        errno: Errno,
    },
    /// The kernel's answer was none we understand, or there was none.
    #[error("cannot {action}: {source}")]
    Answer {
        /// What was asked.
        action: String,
        /// What came back.
        source: rtnetlink::Error,
    },
}

impl Netlink {
    /// Opens a socket in the network namespace of this thread. It is served by a task on the current
    /// tokio runtime, so there must be one.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }
}

impl NetlinkError {
    /// The kernel's answer, if it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::NoLink(_) => Some(Errno::ENODEV),
            Self::Open(_) | Self::BadName(_) | Self::Answer { .. } => None,
        }
    }

    /// From what the kernel said to an action ("add the link weft").
    pub(crate) fn new(action: String, source: rtnetlink::Error) -> Self {
        match errno(&source) {
            Some(errno) => Self::Refused { action, errno },
            None => Self::Answer { action, source },
        }
    }
}

/// Says what was tried when the kernel refuses, and takes some refusals for consent.
pub(crate) trait Asked<T> {
    /// The error, with what was asked for.
    fn to(self, action: impl FnOnce() -> String) -> Result<T, NetlinkError>;

    /// The same, but this answer means that things are as they should be.
    fn to_unless(self, fine: Errno, action: impl FnOnce() -> String) -> Result<(), NetlinkError>;
}

impl<T> Asked<T> for Result<T, rtnetlink::Error> {
    fn to(self, action: impl FnOnce() -> String) -> Result<T, NetlinkError> {
        self.map_err(|source| NetlinkError::new(action(), source))
    }

    fn to_unless(self, fine: Errno, action: impl FnOnce() -> String) -> Result<(), NetlinkError> {
        match self {
            Err(error) if errno(&error) == Some(fine) => Ok(()),
            other => other.to(action).map(drop),
        }
    }
}

/// The first of a message's attributes that is of a kind, or what of it is asked for.
macro_rules! attribute {
    ($attributes:expr, $pattern:pat => $value:expr) => {
        $attributes.iter().find_map(|attribute| {
            if let $pattern = attribute {
                Some($value)
            } else {
                None
            }
        })
    };
}
pub(crate) use attribute;

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return None;
    };
    message
        .code
        .map(|code| Errno::from_raw(code.get().wrapping_neg()))
}

fn remedy(errno: Errno) -> &'static str {
    if errno == Errno::EPERM || errno == Errno::EACCES {
        "; weft needs the capability CAP_NET_ADMIN: run it as root, or its container with `--cap-add NET_ADMIN`"
    } else if errno == Errno::EOPNOTSUPP {
        "; the kernel lacks what this needs: try `modprobe -a bridge veth tun`"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_refusal_names_the_action_and_the_remedy() {
        let error = NetlinkError::Refused {
            action: "add the link weft".to_owned(),
            errno: Errno::EPERM,
        };
        let text = error.to_string();
        assert!(text.starts_with("cannot add the link weft: Operation not permitted; "));
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    }

    #[test]
    fn a_socket_stays_in_the_namespace_it_was_opened_in() {
        testing::in_namespace(async |inside, _| {
            inside.add_bridge("weft").await.unwrap();
            let ours = std::thread::spawn(|| {
                // A thread has the namespace of the one that started it.
                let runtime = testing::runtime();
                runtime.block_on(async { Netlink::new().unwrap().exists("weft").await.unwrap() })
            });
            assert!(ours.join().unwrap());
            assert!(!testing::outside(async |outside| outside
                .exists("weft")
                .await
                .unwrap()));
        });
    }
}
