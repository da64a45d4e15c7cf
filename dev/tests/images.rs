//! A tag can be moved to other bytes, a digest cannot.

use std::fs;
use std::path::Path;

/// Whose digest is not known to us.
const BY_VERSION: [&str; 1] = ["nats:2.15.1-alpine"];
/// What is built here.
const OURS: &str = "mooring-";

/// What a line of a Dockerfile or of a compose file takes from a registry.
fn image(line: &str) -> Option<&str> {
    let line = line.trim();
    let argument = line.strip_prefix("ARG ").and_then(|rest| rest.split_once("_IMAGE="));
    let from = line.strip_prefix("FROM ").and_then(|rest| rest.split_whitespace().next());
    let literal = from.filter(|name| !name.starts_with('$') && name.contains([':', '/']));
    let image = argument.map(|(_, image)| image).or(literal);
    image.or_else(|| line.strip_prefix("image: ")).filter(|image| !image.starts_with(OURS))
}

fn is_pinned(image: &str) -> bool {
    let digest = image.split_once("@sha256:").map_or("", |(_, digest)| digest);
    digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn images_are_pinned_by_digest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = 0;
    for file in ["Dockerfile", "deploy/otel-collector/Dockerfile", "docker-compose.yml"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        for image in text.lines().filter_map(image) {
            found += 1;
            assert!(is_pinned(image) || BY_VERSION.contains(&image), "{file}: {image}");
        }
    }
    assert!(found >= 10, "{found}");
}

#[test]
fn an_image_by_its_tag_is_seen() {
    for line in ["FROM debian:13 AS build", "ARG RUST_IMAGE=rust:1", "    image: postgres:18"] {
        assert!(!is_pinned(image(line).unwrap()), "{line}");
    }
    for line in ["FROM ${RUST_IMAGE} AS build", "FROM runtime AS ingest", "image: mooring-ingest"] {
        assert_eq!(image(line), None, "{line}");
    }
}
