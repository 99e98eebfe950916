//! What the tests of this crate share: fresh network namespaces to work in.
//!
//! A namespace made here has no name, so it is gone with the test, whatever the test did.

use std::io::Write as _;

use tokio::runtime::Runtime;

use crate::Netlink;
use crate::capability::{SYS_ADMIN, holds};
use crate::netns::{NetNs, run_in};

/// Whether we may make namespaces and links. Where tests must not be skipped (`CI` is set) that is
/// an error, elsewhere a note.
pub(crate) fn privileged() -> bool {
    let privileged = holds(SYS_ADMIN) && crate::has_net_admin();
    if !privileged {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root, and CI runs all tests"
        );
        // Not by the macro: what that says is shown only of tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped: needs root");
    }
    privileged
}

pub(crate) fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Runs a test on a thread in a fresh namespace, with loopback up.
pub(crate) fn in_namespace(test: impl AsyncFnOnce(Netlink, NetNs) + Send) {
    if !privileged() {
        return;
    }
    let ns = NetNs::create().unwrap();
    let inside = || {
        runtime().block_on(async {
            let netlink = Netlink::new().unwrap();
            netlink.set_up("lo").await.unwrap();
            test(netlink, NetNs::current().unwrap()).await;
        });
    };
    run_in(&ns, inside).unwrap();
}

/// Runs something in a namespace with nothing in it.
pub(crate) fn outside<T: Send>(f: impl AsyncFnOnce(Netlink) -> T + Send) -> T {
    let ns = NetNs::create().unwrap();
    run_in(&ns, || {
        runtime().block_on(async { f(Netlink::new().unwrap()).await })
    })
    .unwrap()
}
