//! The whole pipeline, with a real nats-server, a real Postgres and our own
//! binaries as processes. Each test has servers and data of its own, on free
//! ports of loopback.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::large_futures,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says on the way what it does"
)]

mod access_log;
mod answers;
mod archive;
mod archive_s3;
mod bad_input;
mod callbacks;
mod canary;
mod chaos;
mod clients;
mod cluster;
mod collect;
mod command_line;
mod confirmation;
mod contracts;
mod crashes;
mod dashboards;
mod dead_letters;
mod doctor;
mod doors;
mod duplicates;
mod durability;
mod erase_again;
mod erasure;
mod explain;
mod feed;
mod forged;
mod forward;
mod group_commit;
mod held;
mod helm;
mod hot_place;
mod identity;
mod install_page;
mod keys;
mod load;
mod marketplaces;
mod oauth;
mod openapi;
mod operate;
mod order;
mod other_log;
mod otlp;
mod payload;
mod platforms;
mod portal;
mod proxy;
mod push;
mod quotas;
mod reads;
mod rebuild;
mod relay;
mod renewals;
mod replay;
mod restore;
mod simulate;
mod skipped;
mod systemd;
mod telemetry;
mod tenants;
mod token_server;
mod transport;
mod world;
