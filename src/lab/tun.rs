//! Whether routers will be able to make their TAP: asked before a lab is built, because without
//! `/dev/net/tun` none of it would work, and the remedy is outside the lab.

use std::fs::File;
use std::io;

use thiserror::Error;

const DEVICE: &str = "/dev/net/tun";

/// Why a TAP cannot be made.
#[derive(Debug, Error)]
pub(crate) enum TunError {
    /// The device is root's.
    #[error(
        "{DEVICE} is closed to this user: run as root, or open it with `sudo chmod 0666 {DEVICE}`"
    )]
    Closed,
    /// There is no device.
    #[error(
        "there is no {DEVICE}: load the driver with `modprobe tun`; in a container, start it with \
         `--device {DEVICE}`; to try the lab's hosts and containers alone, use `weft lab up --no-router`"
    )]
    Missing,
    /// It fails otherwise.
    #[error("cannot open {DEVICE}: {0}")]
    Other(io::Error),
}

/// Opens the device and closes it again.
pub(crate) fn check() -> Result<(), TunError> {
    judge(
        File::options()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map(drop),
    )
}

fn judge(opened: io::Result<()>) -> Result<(), TunError> {
    /// ENXIO and ENODEV: a node without a driver behind it.
    const NO_DRIVER: [i32; 2] = [6, 19];
    let Err(error) = opened else { return Ok(()) };
    let no_driver = |number| NO_DRIVER.contains(&number);
    if error.kind() == io::ErrorKind::PermissionDenied {
        Err(TunError::Closed)
    } else if error.kind() == io::ErrorKind::NotFound || error.raw_os_error().is_some_and(no_driver)
    {
        Err(TunError::Missing)
    } else {
        Err(TunError::Other(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_names_its_remedy() {
        let words = |number| {
            judge(Err(io::Error::from_raw_os_error(number)))
                .unwrap_err()
                .to_string()
        };
        assert!(words(13).contains("chmod 0666 /dev/net/tun"));
        assert!(words(2).contains("modprobe tun") && words(19).contains("modprobe tun"));
        assert!(words(24).contains("cannot open /dev/net/tun"));
        assert!(judge(Ok(())).is_ok());
    }
}
