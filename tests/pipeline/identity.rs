//! Tokens of an OpenID issuer, signed by a library that is not ours: PyJWT.

use std::path::Path;
use std::process::{Command, Output};

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::payload::install;
use crate::reads::{ask, configure_two_apps, in_shop};
use crate::world::{Setup, World};

/// Set, the test fails where PyJWT cannot be had.
const REQUIRED: &str = "MOORING_TEST_PYJWT";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline/identity.py");

/// Keys and tokens for an issuer. PyJWT is installed into the target folder, once.
fn pyjwt(issuer: &str) -> Result<Value, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyjwt");
    if !folder.is_dir() {
        let partial = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--timeout", "10", "--retries", "1", "--target"])
            .arg(partial.path())
            .arg("pyjwt[crypto]==2.10.1");
        run(&mut pip)?;
        std::fs::rename(partial.keep(), &folder).ok(); // another test may have been faster
    }
    let output = run(Command::new("python3").env("PYTHONPATH", &folder).args([SCRIPT, issuer]))?;
    serde_json::from_slice(&output.stdout).map_err(|why| why.to_string())
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|why| format!("python3: {why}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(output)
    } else {
        Err(said.lines().last().unwrap_or("").to_owned())
    }
}

/// On loopback, with keys that another one made.
async fn issuer() -> Option<(String, Value)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let made = match pyjwt(&url) {
        Ok(made) => made,
        Err(why) if std::env::var_os(REQUIRED).is_none() => {
            eprintln!("skipped: PyJWT cannot be had here ({why}); {REQUIRED} makes it required");
            return None;
        }
        Err(why) => panic!("{why}"),
    };
    let discovered = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
    let keys = json!({ "keys": made["keys"] });
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(async move || Json(discovered)))
        .route("/keys", get(async move || Json(keys)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Some((url, made))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_let_in_by_what_its_issuer_signed() {
    let Some((url, made)) = issuer().await else { return };
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    world.configure(&format!(
        "[worker.identity_providers.cluster]\nissuer = \"{url}\"\naudience = \"mooring\"\n\
         algorithms = [\"RS256\", \"PS256\", \"ES256\", \"ES384\", \"EdDSA\"]\n\
         [worker.identity_providers.cluster.callers.my-app]\n\
         claims = {{ sub = \"system:serviceaccount:apps:my-app\", \"/kubernetes.io/namespace\" = \"apps\" }}\n\
         scopes = [\"installations:read\"]\nsources = [\"shop\"]\napp_ids = [\"app_1\"]\n"
    ));
    let world = world.with_services().await;
    in_shop(&world, "installed", "app_1", "7", "here").await;
    in_shop(&world, "installed", "app_2", "8", "here").await;
    world.acknowledged(&install("9")).await;
    world.wait_applied().await;

    for (algorithm, token) in made["good"].as_object().unwrap() {
        let token = token.as_str();
        let found = ask(&world, "/v1/installations", token).await;
        assert_eq!(found.status, 200, "{algorithm}: {found:?}");
        let found = found.body["installations"].as_array().unwrap();
        assert_eq!((found.len(), &found[0]["app_id"]), (1, &json!("app_1")), "{algorithm}");
        assert_eq!(ask(&world, "/v1/installations/8", token).await.status, 404);
        let refused = ask(&world, "/v1/installations/7/credential", token).await;
        assert_eq!((refused.status, refused.problem()), (403, "insufficient-scope"));
    }
    for (why, token) in made["bad"].as_object().unwrap() {
        let refused = ask(&world, "/v1/installations", token.as_str()).await;
        assert_eq!((refused.status, refused.problem()), (401, "unauthorized"), "{why}");
        let detail = refused.body["detail"].as_str().unwrap();
        let expected = match why.as_str() {
            "unknown-identity" => "knows no caller of these claims",
            why => why,
        };
        assert!(detail.contains(expected), "{why}: {detail}");
    }
    // Tokens of the configuration work beside it.
    assert_eq!(world.read("/v1/installations").await.status, 200);
}
