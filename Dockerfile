# Two images from one build: `docker build --target ingest .` and `docker build --target worker .`
#
# The bases are arguments, so that a mirror or other images can take their place. The first two
# must agree on glibc: both are Debian 13.
ARG RUST_IMAGE=rust:1.95-slim-trixie
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot
ARG BUSYBOX_IMAGE=busybox:1.37-musl

FROM ${BUSYBOX_IMAGE} AS busybox

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
# Queries were checked against .sqlx, so that no database is needed here.
ENV SQLX_OFFLINE=true
RUN cargo build --release --locked -p ingest -p worker

# libc, CA certificates (for tls:// and sslmode=) and a user, but no shell and no package manager.
FROM ${RUNTIME_IMAGE} AS runtime
# For health checks by the container engine, which runs them inside the container.
COPY --from=busybox /bin/busybox /usr/bin/wget
ENV MOORING_CONFIG=/etc/mooring/mooring.toml
USER 65532:65532

FROM runtime AS ingest
COPY --from=build /src/target/release/ingest /usr/bin/ingest
EXPOSE 8080
ENTRYPOINT ["/usr/bin/ingest"]
CMD ["run"]

FROM runtime AS worker
COPY --from=build /src/target/release/worker /usr/bin/worker
EXPOSE 8081
ENTRYPOINT ["/usr/bin/worker"]
CMD ["run"]
