//! Plain `docker run`: by the runtime, by the proxy that `weft env` leads to, and what both leave as it is.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::bed::Bed;
use super::command::{PATIENCE, SOON, ensure, eventually};
use super::images::BUSYBOX;

/// Docker on this many hosts, a router on each with these arguments, connected.
#[track_caller]
fn hosts(count: usize, launch: &[&str]) -> Bed {
    let bed = Bed::up(count);
    bed.launch(launch);
    bed
}

/// The same where dockerd knows the runtime.
#[track_caller]
fn hosts_set_up(count: usize, launch: &[&str]) -> Bed {
    let bed = hosts(count, launch);
    bed.on_all(|bed, host| {
        bed.ok(host, &["weft", "setup", "docker"]);
    });
    bed
}

/// Runs a line in a shell that `weft env` told where Docker is.
#[track_caller]
fn led(bed: &Bed, host: &str, line: &str) -> String {
    bed.sh(host, &format!("eval $(weft env 2>/dev/null); {line}"))
}

/// What follows `inet` in what `ip` shows.
fn in_text(shown: &str) -> Option<String> {
    let word = shown
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1);
    word.map(str::to_owned)
}

/// The addresses of the container app01 on `ethwe`, of IPv4 and of IPv6.
fn both_addresses(bed: &Bed) -> Result<[String; 2], String> {
    let show = [
        "docker", "exec", "app01", "ip", "-o", "addr", "show", "ethwe", "scope", "global",
    ];
    let shown = bed.on("node01", &show);
    let mut words = shown.printed.split_whitespace();
    let mut after = |family: &str| words.find(|word| *word == family).and(words.next());
    let both = after("inet").zip(after("inet6"));
    let both = both.map(|(four, six)| [four.to_owned(), six.to_owned()]);
    both.ok_or_else(|| format!("not both addresses: {shown:?}"))
}

/// The address on `ethwe` in what a container's first instruction, `ip addr show ethwe`, has shown.
#[track_caller]
fn at_first(shown: &str) -> String {
    assert!(shown.contains(",UP,LOWER_UP"), "not up at first: {shown}");
    in_text(shown).unwrap_or_else(|| panic!("no address at first: {shown}"))
}

/// What is learned from tutorials, word for word; `script` gives the terminal that `-it` wants.
#[track_caller]
fn tell_the_story(bed: &Bed, first: &str, second: &str) {
    for (host, app) in [("node01", first), ("node02", second)] {
        let run = format!("docker container run -d --name {app} {BUSYBOX} tail -f /dev/null");
        led(bed, host, &run);
    }
    for (host, from, to) in [("node02", second, first), ("node01", first, second)] {
        eventually("the other has heard of the name", SOON, || {
            let lookup = bed.on(host, &["weft", "dns-lookup", to]);
            ensure(lookup.code == Some(0), lookup.said)
        });
        let ping = format!("docker container exec -it {from} ping -c 4 {to}");
        let said = led(bed, host, &format!("script -qec '{ping}' /dev/null"));
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}

#[test]
fn the_tutorial_works_word_for_word_with_and_without_setting_docker_up() {
    let bed = Bed::up(2);
    bed.ok("node01", &["weft", "launch"]);
    bed.ok("node02", &["weft", "launch"]);
    bed.ok("node01", &["weft", "connect", "node02"]);
    let env = bed.on("node01", &["weft", "env"]);
    assert!(env.said.contains("weft setup docker"), "{env:?}");
    assert_eq!(
        env.printed,
        "export DOCKER_HOST=unix:///run/weft/docker.sock\n"
    );
    tell_the_story(&bed, "app01", "app02");
    for host in bed.names() {
        bed.ok(&host, &["weft", "setup", "docker"]);
        assert_eq!(bed.on(&host, &["weft", "env"]).said, "");
    }
    tell_the_story(&bed, "app03", "app04");
    let runtime = [
        "docker",
        "inspect",
        "-f",
        "{{.HostConfig.Runtime}}",
        "app03",
    ];
    assert_eq!(bed.ok("node01", &runtime).trim(), "weft");
    let restored = "eval $(weft env); eval $(weft env --restore); echo \"[$DOCKER_HOST]\"";
    assert_eq!(bed.sh("node01", restored), "[]\n");
}

#[test]
fn sixty_containers_started_at_once_have_their_addresses_from_the_first_instruction_on() {
    let bed = hosts_set_up(3, &[]);
    let mut addresses = BTreeSet::new();
    let first = "ip addr show ethwe; exec sleep infinity";
    bed.on_all(|bed, host| {
        thread::scope(|scope| {
            for number in 0..20 {
                scope.spawn(move || {
                    let name = format!("c{number}-{host}");
                    let begin = ["docker", "run", "-d", "--runtime=weft", "--name", &name];
                    bed.ok(
                        host,
                        &[&begin, [BUSYBOX, "sh", "-c", first].as_slice()].concat(),
                    );
                });
            }
        });
    });
    for host in bed.names() {
        for number in 0..20 {
            let logs = bed.ok(&host, &["docker", "logs", &format!("c{number}-{host}")]);
            let address = at_first(&logs);
            assert!(
                addresses.insert(address.clone()),
                "{address} was given twice"
            );
        }
    }
    assert_eq!(addresses.len(), 60);
}

#[test]
fn fifty_short_containers_in_a_row_do_with_fourteen_addresses_of_three_hosts() {
    let bed = hosts_set_up(3, &["--ipalloc-range=10.9.0.0/28"]);
    for number in 0..50 {
        let host = format!("node0{}", number % 3 + 1);
        let run = ["docker", "run", "--rm", "--runtime=weft", BUSYBOX];
        let show = ["ip", "addr", "show", "ethwe"];
        let shown = bed.ok(&host, &[&run, show.as_slice()].concat());
        let address = at_first(&shown);
        assert!(address.starts_with("10.9.0."), "{address}");
    }
}

#[test]
fn a_container_keeps_its_address_and_name_whatever_is_started_again() {
    let ranges = "--ipalloc-range=10.32.0.0/12,fd57:7::/64";
    let mut bed = hosts_set_up(1, &[ranges]);
    let run = [
        "docker",
        "run",
        "-d",
        "--runtime=weft",
        "--restart=always",
        "--name",
        "app01",
    ];
    bed.ok(
        "node01",
        &[&run, [BUSYBOX, "sleep", "infinity"].as_slice()].concat(),
    );
    let before = both_addresses(&bed).unwrap();
    assert!(before[1].starts_with("fd57:7:"), "{before:?}");
    let still = |bed: &Bed, what: &str| {
        eventually(
            &format!("app01 is as it was after {what}"),
            PATIENCE,
            || {
                let shown = both_addresses(bed)?;
                ensure(shown == before, format!("{shown:?}"))?;
                let name = bed.on("node01", &["weft", "dns-lookup", "app01"]);
                let is_found = |cidr: &String| {
                    let bare = cidr.split('/').next();
                    name.printed.lines().any(|line| Some(line) == bare)
                };
                ensure(before.iter().all(is_found), format!("{name:?}"))
            },
        );
    };
    still(&bed, "nothing");
    bed.sh(
        "node01",
        "kill -9 $(docker inspect -f '{{.State.Pid}}' app01)",
    );
    still(&bed, "its own end");
    bed.ok("node01", &["docker", "restart", "-t", "0", "app01"]);
    still(&bed, "docker restart");
    bed.ok("node01", &["weft", "stop"]);
    bed.ok("node01", &["weft", "launch", ranges]);
    still(&bed, "a restart of the router");
    bed.sh("node01", "kill -9 $(cat /run/weft/weft.pid)");
    bed.ok("node01", &["weft", "launch", ranges]);
    still(&bed, "the death of the router");
    bed.stop_docker("node01");
    bed.start_docker("node01");
    still(&bed, "a restart of dockerd");
    bed.power_off("node01");
    bed.power_on("node01");
    bed.ok("node01", &["weft", "launch", ranges]);
    bed.start_docker("node01");
    still(&bed, "a loss of power");
}

#[test]
fn what_docker_prints_is_the_same_through_the_proxy() {
    let bed = hosts_set_up(1, &[]);
    led(
        &bed,
        "node01",
        "docker run -d --name app01 busybox sleep infinity",
    );
    bed.sh("node01", "mkdir /run/b && printf 'FROM busybox\\nCOPY f /f\\nRUN cat /f\\n' > /run/b/Dockerfile && head -c 3000000 /dev/zero > /run/b/f");
    // So that both builds below find the same in Docker's cache, and print the same.
    bed.sh("node01", "DOCKER_BUILDKIT=0 docker build -q /run/b");
    // Names have two letters at least, as Docker wants: with one of a single letter nothing is made, and `docker attach` or
    // `docker rm` takes the letter for the beginning of another container's identifier. Docker by itself was seen to lose what is
    // written to a container just attached to, which is said again and again therefore.
    for line in [
        "docker ps -a --format '{{.Names}} {{.Image}}'; docker images -q; docker version",
        "docker run --rm busybox sh -c 'echo out; echo err >&2; exit 3' 2>/run/err; echo $?; cat /run/err",
        "head -c 2000000 /dev/urandom > /run/in; docker run --rm -i busybox cat < /run/in | cmp - /run/in && echo same",
        "docker exec app01 sh -c 'echo out; exit 4'; echo $?; echo text | docker exec -i app01 cat",
        "script -qec 'docker exec -it app01 sh -c \"tty | tr -d 0-9; stty size\"' /dev/null",
        "docker run -d --name log01 busybox sh -c 'for i in 1 2 3; do echo $i; sleep 0.2; done' >/dev/null; docker logs -f log01; docker rm log01",
        "docker cp app01:/etc/group /run/g && cat /run/g; docker cp /run/in app01:/in && docker exec app01 wc -c /in",
        "docker run -d -i --name in01 busybox head -n 1 >/dev/null; while sleep 0.2; do echo said; done 2>/dev/null | docker attach in01; docker wait in01; docker rm in01",
        "DOCKER_BUILDKIT=0 docker build /run/b && docker save busybox | wc -c",
        "since=$(date +%s); docker run --rm --name event01 busybox true; timeout 20 docker events --since $since --until $(($(date +%s) + 1)) --filter container=event01 --format '{{.Action}}'",
        "mkdir -p /run/c && cd /run/c && printf 'services:\\n  web:\\n    image: busybox\\n    command: sleep infinity\\n    stop_grace_period: 1s\\n' > docker-compose.yml && docker-compose up -d && docker-compose ps && docker-compose exec -T web cat /etc/passwd && docker-compose down",
        "docker inspect none; docker run --rm nosuchimage@sha256:0 2>&1; echo $?",
    ] {
        // `script` writes a NUL at the end of its own input, which the terminal may show in time or not; and which number
        // a terminal has depends on when the one before was given back.
        let line = format!("exec 2>&1; ({line}) | sed 's/^^@//'; true");
        let plain = bed.sh("node01", &line);
        let through = led(&bed, "node01", &line);
        assert_eq!(through, plain, "{line}");
    }
}

#[test]
fn services_of_compose_find_each_other_across_hosts() {
    let bed = hosts_set_up(2, &[]);
    for (host, service) in [("node01", "web"), ("node02", "db")] {
        let file =
            format!("services:\n  {service}:\n    image: {BUSYBOX}\n    command: sleep infinity\n");
        bed.sh(host, "mkdir /run/shop");
        std::fs::write(bed.path(host, "/run/shop/docker-compose.yml"), file).unwrap();
        let scale = format!("cd /run/shop && docker-compose up -d --scale {service}=2");
        led(&bed, host, &scale);
    }
    bed.pings("node02", "shop_db_1", "web");
    bed.pings("node01", "shop_web_2", "db");
    // The first answer needs one of the two names only, and they come from the other host one by one.
    eventually("db is the name of both containers", PATIENCE, || {
        let found = bed.on("node01", &["weft", "dns-lookup", "db"]);
        ensure(
            found.printed.split_whitespace().count() == 2,
            format!("{found:?}"),
        )
    });
    led(
        &bed,
        "node02",
        "cd /run/shop && docker-compose restart -t 0",
    );
    bed.pings("node01", "shop_web_1", "db");
    led(&bed, "node02", "cd /run/shop && docker-compose down -t 0");
    bed.on("node02", &["weft", "dns-lookup", "db"]).failure();
    let holders = bed.ok(
        "node02",
        &["weft", "report", "--format", "{{ipam.holders}}"],
    );
    // The names went with the containers; the addresses go with what Docker no longer has.
    eventually("their addresses are free again", PATIENCE, || {
        let now = bed.ok(
            "node02",
            &["weft", "report", "--format", "{{ipam.holders}}"],
        );
        ensure(now.trim() == "[]", format!("{holders} {now}"))
    });
}

#[test]
fn a_router_that_is_stuck_or_gone_is_in_the_way_of_nothing_but_the_network() {
    let bed = hosts_set_up(1, &[]);
    let stop = |signal: &str| {
        bed.sh(
            "node01",
            &format!("kill -{signal} $(cat /run/weft/weft.pid)"),
        )
    };
    let others_work = || {
        let begin = Instant::now();
        led(
            &bed,
            "node01",
            "docker ps; docker run --rm --net=host busybox true",
        );
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        let begin = Instant::now();
        let refused = bed
            .on(
                "node01",
                &["sh", "-c", "eval $(weft env); docker run --rm busybox true"],
            )
            .failure();
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            begin.elapsed()
        );
        refused
    };
    led(&bed, "node01", "docker run --rm busybox true");
    stop("STOP");
    let refused = others_work();
    assert!(refused.contains("does not answer"), "{refused}");
    stop("CONT");
    led(&bed, "node01", "docker run --rm busybox true");
    stop("KILL");
    let refused = others_work();
    assert!(refused.contains("weft launch"), "{refused}");
    let refused = bed
        .on(
            "node01",
            &["docker", "run", "--rm", "--runtime=weft", BUSYBOX, "true"],
        )
        .failure();
    assert!(refused.contains("weft launch"), "{refused}");
    bed.ok("node01", &["weft", "launch"]);
    led(&bed, "node01", "docker run --rm busybox true");
    bed.ok("node01", &["weft", "reset"]);
    assert!(!bed.path("node01", "/run/weft/docker.sock").exists());
}
