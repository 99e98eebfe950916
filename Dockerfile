# The router as a container: `docker build -t weft .`, then see README.md.
#
# BUILD and BASE can be replaced where no registry is reachable: any Debian root with the packages below will do.
ARG BUILD=rust:1-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILD} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin weft

FROM ${BASE}
RUN command -v nft >/dev/null || (apt-get update && apt-get install -y --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*)
COPY --from=build /src/target/release/weft /usr/local/bin/weft
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["launch", "--foreground"]
