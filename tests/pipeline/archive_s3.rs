//! The archive in a bucket: a real server that speaks S3, if there is one.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::archive::{first_sequence, run, some_installations};
use crate::world::{Setup, World, eventually};

const BUCKET: &str = "mooring-archive";

struct S3Server {
    process: Child,
    url: String,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl S3Server {
    /// With an empty bucket; `None` where there is no server.
    async fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find =
            |name| std::env::split_paths(&path).map(|it| it.join(name)).find(|it| it.is_file());
        let Some(program) = find("moto_server") else {
            let required = std::env::var_os("MOORING_TEST_S3").is_some();
            assert!(!required, "MOORING_TEST_S3 is set, and there is no moto_server in PATH");
            eprintln!("not tested with S3: there is no moto_server in PATH");
            return None;
        };
        let port = dev::ports::free_port().unwrap();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, url: format!("http://127.0.0.1:{port}") };
        let http = service::http_client::builder().no_proxy().build().unwrap();
        // It reads the region from the signature, and checks no more of it.
        let signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=0";
        let made = async || {
            let put = http.put(format!("{}/{BUCKET}", server.url)).header("Authorization", signed);
            put.send().await.is_ok_and(|answer| answer.status() == 200)
        };
        assert!(eventually(made).await, "the bucket was not made");
        Some(server)
    }
}

async fn start(server: &S3Server) -> World {
    let world = World::servers(Setup::default());
    let secret = |name: &str, text: &str| {
        let path = world.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (id, key) = (secret("access-key-id", "key"), secret("secret-access-key", "secret"));
    world.configure(&format!(
        "[worker.archive]\nurl = \"s3://{BUCKET}/logs\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
         access_key_id = {{ file = {id:?} }}\nsecret_access_key = {{ file = {key:?} }}\n\
         retention_days = 0\nsegment_bytes = 10_000",
        server.url
    ));
    world.with_services().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_archived_in_a_bucket_and_read_from_it() {
    let Some(mut server) = S3Server::start().await else { return };
    let world = start(&server).await;
    some_installations(&world, "a").await;
    let replayed = async || world.operate(&["replay"]).await.stdout;
    let events = async || world.read("/v1/installations/a29/events").await;
    let before = (replayed().await, events().await.body);

    let done = run(&world, &[]).await.json(0);
    assert!(done["segments"].as_array().unwrap().len() > 2, "{done}");
    assert_eq!((done["archived_to"].clone(), first_sequence(&world).await), (30.into(), 31));
    assert_eq!((replayed().await, events().await.body), before);
    some_installations(&world, "b").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 61);
    let listed = world.operate(&["archive", "list", "--json"]).await.json(0);
    assert_eq!(
        (&listed["at"], &listed["events"]),
        (&json!("s3://mooring-archive/logs"), &61.into())
    );
    assert_eq!(listed["without_manifest"], json!([]));
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    let rebuilt = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!((&rebuilt["events"], &rebuilt["comparison"]["different"]), (&62.into(), &0.into()));
    assert_eq!(world.operate(&["verify"]).await.code, 0);

    // It is away: nothing is let go of.
    some_installations(&world, "c").await;
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let refused = run(&world, &[]).await;
    assert!(refused.code == 1 && refused.stderr.contains("does not answer"), "{refused:?}");
    assert_eq!(first_sequence(&world).await, 62);
    assert_eq!(world.operate(&["rebuild"]).await.code, 1);
    assert_eq!(events().await.problem(), "archive-unavailable");
}
