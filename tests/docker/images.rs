//! Container images made from what is on this machine: no registry is needed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::bed::{Bed, WEFT};
use super::command::{run, run_within, words};

/// An image of a busybox and nothing else.
pub(crate) const BUSYBOX: &str = "busybox";
/// The image that the project's `Dockerfile` makes.
pub(crate) const ROUTER: &str = "weft";
/// What that one is made on: a shell, the C library, and the tools of the packet filter.
const BASE: &str = "weft-base";

/// Puts [`BUSYBOX`] on a host.
#[track_caller]
pub(crate) fn load_busybox(bed: &Bed, host: &str) {
    let (_folder, tar) = pack(busybox);
    let import = [
        "docker",
        "import",
        "-c",
        "CMD [\"sh\"]",
        tar.to_str().unwrap(),
        BUSYBOX,
    ];
    bed.ok(host, &import);
}

/// Builds [`ROUTER`] on a host as a user would, on a base made here.
#[track_caller]
pub(crate) fn build_router(bed: &Bed, host: &str) {
    let (_folder, tar) = pack(base);
    bed.ok(host, &["docker", "import", tar.to_str().unwrap(), BASE]);
    let source = source();
    let source = source.path().to_str().unwrap();
    let argument = format!("BASE={BASE}");
    // The classic builder: BuildKit would want a front end from a registry.
    let build = [
        "env",
        "DOCKER_BUILDKIT=0",
        "docker",
        "build",
        "--build-arg",
        &argument,
    ];
    let command = [&build, ["-t", ROUTER, source].as_slice()].concat();
    run_within(
        std::time::Duration::from_secs(120),
        &mut bed.command(host, &command),
    )
    .success();
}

/// A root made by `fill`, as an archive.
fn pack(fill: impl FnOnce(&Path)) -> (TempDir, PathBuf) {
    let folder = TempDir::with_prefix("weft-image-").unwrap();
    let (root, tar) = (folder.path().join("root"), folder.path().join("root.tar"));
    fs::create_dir(&root).unwrap();
    fill(&root);
    let (from, to) = (root.to_str().unwrap(), tar.to_str().unwrap());
    run(&mut words(&["tar", "-C", from, "-cf", to, "."])).success();
    (folder, tar)
}

fn busybox(root: &Path) {
    for folder in [
        "bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "var",
    ] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    libraries(root, "/bin/busybox");
    for applet in run(&mut words(&["/bin/busybox", "--list"]))
        .success()
        .lines()
    {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
}

/// What Debian's base would give the router: its libraries, nft and iptables with theirs.
fn base(root: &Path) {
    busybox(root);
    for program in [
        "/usr/sbin/nft",
        "/usr/sbin/xtables-nft-multi",
        "/usr/sbin/xtables-legacy-multi",
    ] {
        copy(root, program);
        libraries(root, program);
    }
    libraries(root, WEFT);
    for module in fs::read_dir(xtables()).unwrap() {
        let module = module.unwrap().path();
        if module.extension().is_some_and(|end| end == "so") {
            copy(root, module.to_str().unwrap());
        }
    }
    for (tool, program) in [
        ("iptables", "xtables-nft-multi"),
        ("ip6tables", "xtables-nft-multi"),
        ("iptables-nft", "xtables-nft-multi"),
        ("iptables-legacy", "xtables-legacy-multi"),
    ] {
        symlink(program, root.join("usr/sbin").join(tool)).unwrap();
    }
}

/// Where iptables has its matches and targets.
fn xtables() -> PathBuf {
    let found = run(&mut words(&[
        "find",
        "/usr/lib",
        "-maxdepth",
        "2",
        "-name",
        "xtables",
    ]));
    PathBuf::from(found.success().lines().next().unwrap())
}

/// Copies the libraries a program is linked with; of one that needs none `ldd` says so, and that it failed.
fn libraries(root: &Path, program: &str) {
    for line in run(&mut words(&["ldd", program])).printed.lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            copy(root, path);
        }
    }
}

fn copy(root: &Path, path: &str) {
    let to = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(path, &to).unwrap();
}

/// The folder `docker build` runs in: the project's `Dockerfile`, and the program where it expects it.
fn source() -> TempDir {
    let folder = TempDir::with_prefix("weft-build-").unwrap();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["Dockerfile", ".dockerignore"] {
        fs::copy(project.join(file), folder.path().join(file)).unwrap();
    }
    let release = folder.path().join("target/release");
    fs::create_dir_all(&release).unwrap();
    fs::copy(stripped().path().join("weft"), release.join("weft")).unwrap();
    folder
}

/// The program in a folder, without what a debugger reads, which makes most of a test build's size.
pub(crate) fn stripped() -> TempDir {
    let folder = TempDir::with_prefix("weft-small-").unwrap();
    let program = folder.path().join("weft");
    fs::copy(WEFT, &program).unwrap();
    let strip = ["strip", "--strip-debug", program.to_str().unwrap()];
    run(&mut words(&strip)).success();
    folder
}
