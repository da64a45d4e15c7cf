# Two images from one build: `docker build --target ingest .` and `docker build --target worker .`
#
# The bases are arguments, so that a mirror or other images can take their place. The first two
# must agree on glibc: both are Debian 13.
ARG RUST_IMAGE=rust:1.95-slim-trixie@sha256:275c320a57d0d8b6ab09454ab6d1660d70c745fb3cc85adbefad881b69a212cc
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot@sha256:e792ab3d241a468a4fd7519ddbbebe66b49b5f365771716ea688ad40b6c6f1c2
ARG BUSYBOX_IMAGE=busybox:1.37-musl@sha256:5cec3fc171c87218698e85a52af7087de727372aae264a787b8112901a5b0092

FROM ${BUSYBOX_IMAGE} AS busybox

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
# Queries were checked against .sqlx, so that no database is needed here.
ENV SQLX_OFFLINE=true
# Which commit this is: `docker build --build-arg MOORING_REVISION=$(git rev-parse --short HEAD) …`.
# Metrics, telemetry, `--version` and the admin ports' /livez say it.
ARG MOORING_REVISION=
ENV MOORING_REVISION=$MOORING_REVISION
# The list of what was built in stands in the programs: `cargo audit bin`, Syft and Trivy read it.
RUN cargo install --locked cargo-auditable --version 0.7.7
RUN cargo auditable build --release --locked -p ingest -p worker

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
