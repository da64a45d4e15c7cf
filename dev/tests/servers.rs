//! The real servers, as they are started, killed, started again and stopped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dev::credentials::{NatsCredentials, PostgresPasswords, Role, new_password};
use dev::nats::{NatsOptions, NatsServer, Staging};
use dev::ports::free_port;
use dev::postgres::{Postgres, PostgresOptions};
use dev::{Stopped, temporary, tools};

fn nats_credentials() -> NatsCredentials {
    NatsCredentials {
        admin: new_password(),
        ingest: new_password(),
        worker: new_password(),
        renewer: new_password(),
        archiver: new_password(),
        app: new_password(),
    }
}

fn nats_options(dir: &Path, credentials: NatsCredentials) -> NatsOptions {
    NatsOptions {
        dir: dir.join("nats"),
        port: free_port().unwrap(),
        monitor_port: free_port().unwrap(),
        credentials,
        cluster: None,
        sync_always: true,
        staging: Staging::Memory,
    }
}

fn nats(dir: &Path) -> NatsServer {
    NatsServer::start(nats_options(dir, nats_credentials())).unwrap()
}

fn postgres(dir: &Path) -> Postgres {
    let options = PostgresOptions {
        dir: dir.join("postgres"),
        port: free_port().unwrap(),
        passwords: PostgresPasswords::generate(),
    };
    Postgres::start(options).unwrap()
}

/// A client that speaks the NATS protocol, which is plain text, over a socket.
struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
    inbox: String,
}

impl Client {
    fn connect(server: &NatsServer, user: &str, password: &str) -> Self {
        let stream = TcpStream::connect(server.url().trim_start_matches("nats://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut client = Self { stream, lines, inbox: format!("_INBOX_{user}.1") };
        let hello = format!(
            "CONNECT {{\"user\":\"{user}\",\"pass\":\"{password}\",\"headers\":true,\"verbose\":false}}\r\nSUB {} 1\r\n",
            client.inbox
        );
        client.stream.write_all(hello.as_bytes()).unwrap();
        client
    }

    /// Publishes with a reply subject and returns what arrives: `MSG …` and its body, or `-ERR …`.
    fn request(&mut self, subject: &str, body: &str) -> String {
        let publish = format!("PUB {subject} {} {}\r\n{body}\r\n", self.inbox, body.len());
        self.stream.write_all(publish.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.starts_with("-ERR") {
                return line;
            }
            if line.starts_with("MSG") {
                return format!("{line} {}", self.line());
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the server closed the connection");
        line.trim_end().to_owned()
    }
}

const STREAM: &str = r#"{"name":"INSTALLATIONS","subjects":["installations.>"],"storage":"file","allow_direct":true}"#;
const KEYS_STREAM: &str =
    r#"{"name":"DATA_KEYS","subjects":["data_keys.*"],"storage":"file","allow_direct":true}"#;
const NEW_KEYS_STREAM: &str = r#"{"name":"NEW_DATA_KEYS","subjects":["new_data_keys.*"],"storage":"file","allow_direct":true,"discard":"new","max_msgs_per_subject":1,"discard_new_per_subject":true}"#;
const CONSUMER: &str = r#"{"stream_name":"INSTALLATIONS","config":{"durable_name":"worker","name":"worker","ack_policy":"explicit"}}"#;

#[test]
fn an_acknowledged_message_survives_a_kill_of_nats() {
    let dir = temporary::folder().unwrap();
    let mut server = nats(dir.path());
    let credentials = server.credentials().clone();
    let created = Client::connect(&server, "admin", &credentials.admin)
        .request("$JS.API.STREAM.CREATE.INSTALLATIONS", STREAM);
    assert!(!created.contains("\"error\""), "{created}");
    let stored = Client::connect(&server, "ingest", &credentials.ingest)
        .request("installations.blnk.0", "event");
    assert!(stored.contains("\"seq\":1"), "{stored}");

    server.kill().unwrap();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();

    let info = Client::connect(&server, "worker", &credentials.worker)
        .request("$JS.API.STREAM.INFO.INSTALLATIONS", "");
    assert!(info.contains("\"messages\":1"), "{info}");
    assert!(matches!(server.stop().unwrap(), Some(Stopped::Cleanly(_))));
}

#[test]
fn nats_does_not_start_with_a_password_that_would_not_survive_its_configuration() {
    let dir = temporary::folder().unwrap();
    for user in ["admin", "ingest", "worker", "renewer", "archiver", "app"] {
        let mut credentials = nats_credentials();
        *match user {
            "admin" => &mut credentials.admin,
            "ingest" => &mut credentials.ingest,
            "worker" => &mut credentials.worker,
            "renewer" => &mut credentials.renewer,
            "archiver" => &mut credentials.archiver,
            _ => &mut credentials.app,
        } = "two words".to_owned();
        let refused = NatsServer::start(nats_options(dir.path(), credentials)).err();
        let error = refused.expect("a password with a space was accepted").to_string();
        assert!(error.contains(&format!("the password of NATS user {user}")), "{error}");
        assert!(!error.contains("two words"), "{error}");
    }
}

#[test]
fn every_nats_user_may_do_its_work_and_nothing_else() {
    let dir = temporary::folder().unwrap();
    let server = nats(dir.path());
    let credentials = server.credentials().clone();
    let mut admin = Client::connect(&server, "admin", &credentials.admin);
    admin.request("$JS.API.STREAM.CREATE.INSTALLATIONS", STREAM);
    admin.request("$JS.API.CONSUMER.CREATE.INSTALLATIONS.worker", CONSUMER);
    admin.request("$JS.API.STREAM.CREATE.DATA_KEYS", KEYS_STREAM);
    admin.request("$JS.API.STREAM.CREATE.NEW_DATA_KEYS", NEW_KEYS_STREAM);

    let mut ingest = Client::connect(&server, "ingest", &credentials.ingest);
    assert!(ingest.request("installations.blnk.0", "x").contains("\"seq\":1"));
    assert!(ingest.request("$JS.API.STREAM.INFO.INSTALLATIONS", "").contains("\"messages\":1"));
    assert!(ingest.request("new_data_keys.p", "x").contains("\"seq\":1"));
    assert!(ingest.request("new_data_keys.p", "y").contains("maximum messages per subject"));
    assert!(ingest.request("data_keys.p", "x").starts_with("-ERR"));
    for read in ["DATA_KEYS.data_keys.p", "NEW_DATA_KEYS.new_data_keys.p"] {
        assert!(ingest.request(&format!("$JS.API.DIRECT.GET.{read}"), "").starts_with("-ERR"));
    }
    assert!(
        ingest.request("$JS.API.STREAM.MSG.GET.INSTALLATIONS", r#"{"seq":1}"#).starts_with("-ERR")
    );
    assert!(ingest.request("$JS.API.STREAM.DELETE.INSTALLATIONS", "").starts_with("-ERR"));

    let mut worker = Client::connect(&server, "worker", &credentials.worker);
    let next = worker.request("$JS.API.CONSUMER.MSG.NEXT.INSTALLATIONS.worker", "1");
    let ack = next.split(' ').find(|word| word.starts_with("$JS.ACK.")).expect(&next).to_owned();
    assert!(worker.request(&ack, "+ACK").starts_with("MSG"), "the ack was not confirmed");
    assert!(
        worker
            .request("$JS.API.CONSUMER.INFO.INSTALLATIONS.worker", "")
            .contains("\"num_ack_pending\":0")
    );
    assert!(worker.request("data_keys.p", "x").starts_with("-ERR"));
    assert!(worker.request("new_data_keys.q", "x").starts_with("-ERR"));
    assert!(worker.request("installations.blnk.0", "x").starts_with("-ERR"));
    assert!(worker.request("$JS.API.STREAM.PURGE.INSTALLATIONS", "").starts_with("-ERR"));

    let mut archiver = Client::connect(&server, "archiver", &credentials.archiver);
    let get = "$JS.API.STREAM.MSG.GET.INSTALLATIONS";
    let delete = "$JS.API.STREAM.MSG.DELETE.INSTALLATIONS";
    assert!(archiver.request("$JS.API.STREAM.INFO.INSTALLATIONS", "").contains("\"messages\":1"));
    assert!(archiver.request(get, r#"{"seq":1}"#).contains("\"seq\":1"));
    assert!(archiver.request(delete, r#"{"seq":1,"no_erase":true}"#).contains("\"success\":true"));
    assert!(archiver.request("$JS.API.STREAM.INFO.INSTALLATIONS", "").contains("\"messages\":0"));
    for (denied, body) in [
        ("installations.blnk.0", "x"),
        ("data_keys.p", "x"),
        ("$JS.API.STREAM.PURGE.INSTALLATIONS", r#"{"seq":1}"#),
        ("$JS.API.STREAM.DELETE.INSTALLATIONS", ""),
        ("$JS.API.STREAM.UPDATE.INSTALLATIONS", STREAM),
        ("$JS.API.STREAM.MSG.DELETE.DATA_KEYS", r#"{"seq":1}"#),
        ("$JS.API.STREAM.MSG.GET.DATA_KEYS", r#"{"seq":1}"#),
        ("$JS.API.STREAM.MSG.DELETE.NEW_DATA_KEYS", r#"{"seq":1}"#),
        ("$JS.API.STREAM.MSG.GET.NEW_DATA_KEYS", r#"{"seq":1}"#),
        ("new_data_keys.p", "x"),
        ("$JS.API.CONSUMER.CREATE.INSTALLATIONS.other", CONSUMER),
        ("$JS.API.CONSUMER.DELETE.INSTALLATIONS.worker", ""),
        ("$JS.API.CONSUMER.MSG.NEXT.INSTALLATIONS.worker", "1"),
    ] {
        assert!(archiver.request(denied, body).starts_with("-ERR"), "{denied}");
    }
}

#[test]
fn postgres_comes_back_after_a_kill_and_stops_when_asked() {
    let dir = temporary::folder().unwrap();
    let mut server = postgres(dir.path());
    let first = server.pid().unwrap();
    server.kill().unwrap();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap(); // fails at once if a process of the killed server still runs
    assert_ne!(server.pid(), Some(first));
    assert!(matches!(server.stop().unwrap(), Some(Stopped::Cleanly(status)) if status.success()));
    server.start_again().unwrap();
}

#[test]
fn the_database_belongs_to_its_owner_and_is_closed_to_others() {
    let psql = tools::postgres().unwrap().folder.join("psql");
    if !psql.is_file() {
        return; // this Postgres came without its client
    }
    let dir = temporary::folder().unwrap();
    let server = postgres(dir.path());
    let ask = |url: &str, sql: &str| {
        let output = Command::new(&psql).args(["-XAt", "-d", url, "-c", sql]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let owner = server.url(Role::Owner, "mooring");
    assert!(ask(&owner, "create table t (x int)").0);
    let worker = server.url(Role::Worker, "mooring");
    assert_eq!(ask(&worker, "select current_user"), (true, "mooring_worker".to_owned()));
    assert!(!ask(&worker, "select * from t").0, "the worker reads only what it was granted");
    assert!(!ask(&worker, "create table u (x int)").0);
    assert!(!ask(&worker.replace("mooring_worker:", "mooring_worker:wrong"), "select 1").0);
    assert_eq!(ask(&server.superuser_url(), "show fsync"), (true, "on".to_owned()));
}
