# The router as a container image; README.md says how it is run.
#
#   cargo build --release && docker build -t weft .
#
# BASE may be any root with glibc of Debian 12 or newer; nft and iptables are installed where it has none.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN command -v nft && command -v iptables || \
    (apt-get update && apt-get install -y --no-install-recommends nftables iptables && rm -rf /var/lib/apt/lists/*)
COPY target/release/weft /usr/local/bin/weft
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["launch", "--foreground"]
