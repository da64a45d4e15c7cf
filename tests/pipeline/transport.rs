//! Connections that leave the machine: encrypted, to whom they should be, by whom
//! they should be, or refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dev::ports::free_port;
use nkeys::KeyPair as NKey;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::payload::install;
use crate::world::{Setup, World, eventually};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for localhost, its key, and who issued it.
fn issue(by: &Authority, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    let files = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    fs::write(&files.0, certificate.pem()).unwrap();
    fs::write(&files.1, key.serialize_pem()).unwrap();
    files
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A server that asks each client for a certificate, and knows ingest by its NKey.
struct TlsNats {
    process: Child,
    url: String,
    monitor_url: String,
}

impl Drop for TlsNats {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl TlsNats {
    fn start(world: &World, ours: &Authority, ingest: &NKey) -> Self {
        let folder = world.folder.path().join("nats-tls");
        fs::create_dir(&folder).unwrap();
        let (certificate, key) = issue(ours, &folder, "server");
        fs::write(folder.join("ca.pem"), ours.pem()).unwrap();
        let (port, monitor_port) = (free_port().unwrap(), free_port().unwrap());
        let admin = world.secrets.read("nats-admin-password").unwrap();
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor_port}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
             tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}\n\
             authorization {{ users: [\n  {{ user: admin, password: \"{admin}\" }}\n  \
             {{ nkey: {} }}\n] }}\n",
            folder.join("data").display(),
            certificate.display(),
            key.display(),
            folder.join("ca.pem").display(),
            ingest.public_key(),
        );
        let file = folder.join("nats.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(dev::tools::nats_server().unwrap());
        command.arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            process: command.spawn().unwrap(),
            url: format!("tls://localhost:{port}"),
            monitor_url: format!("http://127.0.0.1:{monitor_port}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_is_reached_by_tls_with_a_private_ca_a_client_certificate_and_an_nkey() {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    let (ours, other) = (authority("ours"), authority("other"));
    let ingest = NKey::new_user();
    let nats = TlsNats::start(&world, &ours, &ingest);
    let folder = world.folder.path().to_owned();
    let (certificate, key) = issue(&ours, &folder, "client");
    let (stranger, stranger_key) = issue(&other, &folder, "stranger");
    for (name, issuer) in [("ca.pem", &ours), ("other-ca.pem", &other)] {
        fs::write(folder.join(name), issuer.pem()).unwrap();
    }
    world.set_env("MOORING__NATS__URL", nats.url.clone());
    world.set_env("MOORING__NATS__MONITOR_URL", nats.monitor_url.clone());
    world.set_env("MOORING__NATS__TLS__CA", text(&folder.join("ca.pem")));
    world.set_env("MOORING__NATS__TLS__CERTIFICATE", text(&certificate));
    world.set_env("MOORING__NATS__TLS__KEY", text(&key));
    assert!(eventually(async || world.http.get(&nats.monitor_url).send().await.is_ok()).await);
    world.migrate();

    // Not to a server of another authority, and not as a client of another one.
    let other_ca = text(&folder.join("other-ca.pem"));
    let (stranger, stranger_key) = (text(&stranger), text(&stranger_key));
    for envs in [
        vec![("MOORING__NATS__TLS__CA", other_ca.as_str())],
        vec![
            ("MOORING__NATS__TLS__CERTIFICATE", stranger.as_str()),
            ("MOORING__NATS__TLS__KEY", stranger_key.as_str()),
        ],
    ] {
        let done = world.operate_with(&["doctor", "--json"], &envs).await;
        let findings = done.json(3);
        let nats = findings.as_array().unwrap().iter().find(|found| found["check"] == "nats");
        assert_eq!(nats.unwrap()["verdict"], "failed", "{findings:#}");
    }

    let seed = folder.join("ingest.nk");
    fs::write(&seed, ingest.seed().unwrap()).unwrap();
    let password = text(&world.secrets.path("nats-ingest-password"));
    world.replace_in_config(
        &format!("password = {{ file = \"{password}\" }}"),
        &format!("nkey_seed = {{ file = \"{}\" }}", seed.display()),
    );
    world.start_ingest(0);
    world.wait_ingest_ready(0);
    world.acknowledged(&install("a")).await;
}

/// What the superuser has the server do.
async fn run(world: &World, statements: &[String]) {
    for statement in statements {
        let statement = sqlx::AssertSqlSafe(statement.clone());
        sqlx::query(statement).execute(&mut world.connection().await).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_reached_by_tls_and_only_if_it_is_who_it_should_be() {
    let mut world = World::servers(Setup { ingests: 0, ..Setup::default() });
    let (ours, other) = (authority("ours"), authority("other"));
    let folder = world.folder.path().to_owned();
    let (certificate, key) = issue(&ours, &folder, "postgres");
    for (name, issuer) in [("ca.pem", &ours), ("other-ca.pem", &other)] {
        fs::write(folder.join(name), issuer.pem()).unwrap();
    }
    // The server's own user has to own the key. A program that does not read what it is given
    // may end before the server has written it, which is an error ("broken pipe").
    let write = |pem: &Path, name: &str| {
        let pem = fs::read_to_string(pem).unwrap();
        format!("COPY (SELECT 1) TO PROGRAM $$cat >&2; umask 077; printf '%s' '{pem}' > {name}$$")
    };
    run(
        &world,
        &[
            write(&certificate, "server.crt"),
            write(&key, "server.key"),
            "ALTER SYSTEM SET ssl = on".to_owned(),
            "SELECT pg_reload_conf()".to_owned(),
        ],
    )
    .await;
    world.migrate();
    let port = world.ports.postgres;
    let url =
        |role: &str| format!("postgres://{role}@localhost:{port}/mooring?sslmode=verify-full");
    world.set_env("MOORING__POSTGRES__URL", url("mooring_worker"));
    world.set_env("MOORING__POSTGRES__CA", text(&folder.join("ca.pem")));
    world.start_worker(0);
    world.wait_worker_ready(0);
    let encrypted: bool = sqlx::query_scalar(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE usename = 'mooring_worker'",
    )
    .fetch_one(&mut world.connection().await)
    .await
    .unwrap();
    assert!(encrypted);

    let other_ca = text(&folder.join("other-ca.pem"));
    let owner = url("mooring_owner");
    let envs = [("MOORING__POSTGRES__URL", owner.as_str()), ("MOORING__POSTGRES__CA", &other_ca)];
    let findings = world.operate_with(&["doctor", "--json"], &envs).await.json(3);
    let postgres = findings.as_array().unwrap().iter().find(|found| found["check"] == "postgres");
    let found = postgres.unwrap()["found"].as_str().unwrap().to_owned();
    assert!(found.contains("certificate"), "{findings:#}");
}
