//! The lab without root, as somebody runs it who may open `/dev/net/tun` and make user namespaces.
//!
//! The machine's own `/dev` stays as it is: a node anybody may open is mounted over it for one thread
//! and its children only.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::support::{Lab, WEFT, possible, run};

const TUN: &str = "/dev/net/tun";
/// Major and minor number of that node (the kernel's devices.txt).
const TUN_NUMBER: (u64, u64) = (10, 200);
/// Whom everybody takes for nobody.
const NOBODY: u32 = 65534;

#[test]
fn the_lab_needs_no_root_where_the_system_lets_everybody_make_namespaces() {
    if !possible() {
        return;
    }
    let before = fs::metadata(TUN).unwrap().mode();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let name = Lab::named("nobody").name().to_owned();
    // Namespaces are a thread's own affair, so only this one is in the new one.
    let lab = thread::spawn(move || {
        open_tun_for_all(&path);
        run(&mut lab_of_nobody(&path, &name))
    });
    let outcome = lab.join().unwrap();
    let findings: serde_json::Value = serde_json::from_str(&outcome.success()).unwrap();
    assert_eq!(findings["full"], true, "{findings}");
    assert_eq!(
        findings["round_trips"].as_array().unwrap().len(),
        6,
        "{findings}"
    );
    assert_eq!(
        fs::metadata(TUN).unwrap().mode(),
        before,
        "{TUN} has changed"
    );
}

/// In a mount namespace of this thread's own.
fn open_tun_for_all(folder: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).unwrap();
    mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .unwrap();
    let node = folder.join("tun");
    let (major, minor) = TUN_NUMBER;
    mknod(&node, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor)).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o666)).unwrap();
    mount(Some(&node), TUN, none, MsFlags::MS_BIND, none).unwrap();
}

/// The program is copied to where nobody can reach it, whatever folder it was built in.
fn lab_of_nobody(folder: &Path, name: &str) -> Command {
    let program = folder.join("weft");
    fs::copy(WEFT, &program).unwrap();
    let mut command = Command::new(program);
    command
        .args(["lab", "--name", name, "--json"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .gid(NOBODY)
        .uid(NOBODY);
    command
}
