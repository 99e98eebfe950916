#!/usr/bin/env python3
"""targets.py FOLDER - the results of side-by-side.sh as tables, and beside each target what was reached.

A ratio is taken within each round, because absolute figures drift; shown is the median, with least and most. The best
of several peers is the one with the best median."""
import json
import pathlib
import statistics
import sys

folder = pathlib.Path(sys.argv[1])
# Peers that seal what they carry, those that carry Ethernet, and those that forward in user space.
ENCRYPTED = ["vpncloud", "fastdsalsa", "tinc", "nebula", "boringtun", "easytier"]
LAYER_2 = ["vpncloud", "fastdsalsa", "tinc"]
PACKAGED = ["vpncloud", "fastdsalsa", "tinc", "nebula", "easytier"]


def load(part):
    """{contender: {round: result}}"""
    runs = {}
    path = folder / f"{part}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        run = json.loads(line)
        runs.setdefault(run["contender"], {})[run["round"]] = run
    return runs


def at(run, key):
    for word in key.split("."):
        run = (run or {}).get(word)
    return run


def values(runs, name, key):
    found = (at(run, key) for run in runs.get(name, {}).values())
    return [value for value in found if value is not None]


def best(runs, names, key):
    """The contender of these whose median over all rounds is best; the best of each round would be luck's choice."""
    medians = {name: statistics.median(values(runs, name, key)) for name in names if values(runs, name, key)}
    choose = min if key.startswith("pp") else max
    return choose(medians, key=medians.get) if medians else None


def ratios(runs, name, key, other, other_key=None):
    """This figure over that of another contender (or of the best of several) in the same round."""
    other_key = other_key or key
    if not isinstance(other, str):
        other = best(runs, other, other_key)
    found = []
    for number, run in runs.get(name, {}).items():
        ours, theirs = at(run, key), at(runs.get(other, {}).get(number), other_key)
        if ours is not None and theirs:
            found.append(ours / theirs)
    return found


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(found):
    if not found:
        return "not measured"
    median = number(statistics.median(found))
    return median if len(found) == 1 else f"{median} ({number(min(found))}–{number(max(found))})"


def table(title, runs):
    columns = [
        ("TCP 1, Gbit/s", "tcp1.gbps", 1), ("TCP 4, Gbit/s", "tcp4.gbps", 1), ("64-byte UDP, 1000/s", "udp.pps", 1e-3),
        ("p50, µs", "pp.p50", 1), ("p99, µs", "pp.p99", 1), ("CPU s/GB", "tcp1.total_s_per_gb", 1),
        ("of it routers", "tcp1.daemon_s_per_gb", 1), ("MB after", "rss_after", 1),
    ]
    if not runs:
        return
    print(f"\n### {title}\n")
    print("| contender | " + " | ".join(head for head, _, _ in columns) + " |")
    print("|" + " --- |" * (len(columns) + 1))
    for name in runs:
        cells = ([value * scale for value in values(runs, name, key)] for _, key, scale in columns)
        print(f"| {name} | " + " | ".join(shown(cell) if cell else "-" for cell in cells) + " |")


def judge(case, found, target, least=True, aim=None):
    if not found:
        print(f"| {case} | not measured | {target} | - |")
        return
    median = statistics.median(found)
    reached = median >= target if least else median <= target
    beyond = aim is not None and (median >= aim if least else median <= aim)
    sign = "≥" if least else "≤"
    wanted = f"{sign} {target}" + (f", aim {aim}" if aim is not None else "")
    print(f"| {case} | {shown(found)} | {wanted} | {'yes, and the aim' if beyond else 'yes' if reached else '**no**'} |")


parts = {part: load(part) for part in ("on", "off", "loss10", "loss50", "trusted")}
on, off, trusted = parts["on"], parts["off"], parts["trusted"]
table("Underlay with offloads (`-p on`)", on)
table("At most 1500 bytes on the wire (`-p off`)", off)
table("1 % loss", parts["loss10"])
table("5 % loss", parts["loss50"])
table("Trusted subnet, same MTU", trusted)

print("\n### Targets\n\n| case | reached | wanted | met |\n| --- | --- | --- | --- |")
judge("encrypted TCP, 1 stream, of VXLAN", ratios(on, "weft", "tcp1.gbps", "vxlan"), 0.45, aim=0.65)
judge("the same, of the best packaged encrypted peer", ratios(on, "weft", "tcp1.gbps", PACKAGED), 6)
judge("4 streams, of 1 stream", ratios(on, "weft", "tcp4.gbps", "weft", "tcp1.gbps"), 1)
judge("`-p off`, of VXLAN", ratios(off, "weft", "tcp1.gbps", "vxlan"), 0.65, aim=0.85)
judge("`-p off`, of the best encrypted layer-2 peer", ratios(off, "weft", "tcp1.gbps", LAYER_2), 5)
judge("without GRO, of `-p off`", ratios(off, "weft_nogro", "tcp1.gbps", "weft"), 0.5)
judge("with 0.1 % loss, of `-p off`", ratios(off, "weft_loss1", "tcp1.gbps", "weft"), 0.5)
judge("trusted TCP, of VXLAN at the same MTU", ratios(trusted, "weftfast", "tcp1.gbps", "vxlan1376"), 0.95)
judge("the same, CPU per GB", ratios(trusted, "weftfast", "tcp1.total_s_per_gb", "vxlan1376"), 1.10, least=False)
judge("CPU seconds per GB, all processes", values(on, "weft", "tcp1.total_s_per_gb"), 2.0, least=False, aim=1.5)
judge("64-byte UDP received, of the best user-space peer", ratios(on, "weft", "udp.pps", ENCRYPTED), 1.3)
judge("ping-pong p50, of the best layer-2 peer", ratios(on, "weft", "pp.p50", LAYER_2), 1, least=False)
judge("the same, of boringtun", ratios(on, "weft", "pp.p50", "boringtun"), 1, least=False)
judge("ping-pong p99, of the best layer-2 peer", ratios(on, "weft", "pp.p99", LAYER_2), 1, least=False)
judge("the same, of boringtun", ratios(on, "weft", "pp.p99", "boringtun"), 1, least=False)
for loss, percent in (("loss10", "1 %"), ("loss50", "5 %")):
    for peer in ("fastdsalsa", "vpncloud"):
        judge(f"{percent} loss, of {peer}", ratios(parts[loss], f"weft_{loss}", "tcp1.gbps", f"{peer}_{loss}"), 1)
judge("MB of memory after load, both routers", values(on, "weft", "rss_after"), 30, least=False)
errors = {(n, e) for runs in parts.values() for n, rounds in runs.items() for run in rounds.values() for e in run["errors"]}
for name, error in sorted(errors):
    print(f"\n* {name}: {error.strip()[:200]}")
