//! The clients in `clients/` and the platforms' own SDKs with them, against real services. Their
//! tests listen as the platforms, and as an app that changes are pushed to.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dev::ports::free_port;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use crate::platforms::HighLevel;
use crate::world::{Setup, World};

const CLIENT_SECRET: &str = "client-secret-0123456789";
const SLACK_SIGNING_SECRET: &str = "slack-signing-secret-0123456789";
const PUSH_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PUSH_SEED: [u8; 32] = [7; 32];
/// Of HighLevel's callbacks, in `platforms.rs`.
const HIGHLEVEL_SEED: [u8; 32] = [9; 32];

/// Where the tests of a client listen.
struct Ports {
    highlevel: u16,
    slack: u16,
    push: u16,
}

struct Stack {
    world: World,
    ports: Ports,
}

impl Stack {
    async fn start() -> Self {
        let ports = Ports {
            highlevel: free_port().unwrap(),
            slack: free_port().unwrap(),
            push: free_port().unwrap(),
        };
        let HighLevel { world, .. } = HighLevel::start_with(Setup::default(), |world| {
            world.configure(&sections(world, &ports));
        })
        .await;
        Self { world, ports }
    }

    /// What the tests of a client know of it.
    fn envs(&self) -> Vec<(&'static str, String)> {
        let Self { world, ports } = self;
        let pair = Ed25519KeyPair::from_seed_unchecked(&PUSH_SEED).unwrap();
        let public = BASE64_STANDARD.encode(pair.public_key().as_ref());
        vec![
            ("MOORING_URL", world.worker_url(0, "")),
            ("MOORING_TOKEN", world.secrets.read("read-token").unwrap()),
            ("MOORING_CALLBACK_URL", world.callback_url(0)),
            ("MOORING_INGEST_URL", world.ingest_url(0, "")),
            ("MOORING_HL_SOURCE", "highlevel".to_owned()),
            ("MOORING_HL_PORT", ports.highlevel.to_string()),
            ("MOORING_HL_SIGNING_SEED", hex::encode(HIGHLEVEL_SEED)),
            ("MOORING_SLACK_SOURCE", "slack".to_owned()),
            ("MOORING_SLACK_PORT", ports.slack.to_string()),
            ("MOORING_SLACK_SIGNING_SECRET", SLACK_SIGNING_SECRET.to_owned()),
            ("MOORING_PUSH_PORT", ports.push.to_string()),
            ("MOORING_PUSH_KEYS", format!("{PUSH_SECRET} whpk_{public}")),
        ]
    }
}

fn sections(world: &World, ports: &Ports) -> String {
    let file = |name: &str, secret: &str| {
        let path = world.folder.path().join(name);
        std::fs::write(&path, secret).unwrap();
        format!("{{ file = \"{}\" }}", path.display())
    };
    let client_secret = file("client-secret", CLIENT_SECRET);
    let highlevel = format!(
        "[sources.highlevel.oauth]\nclient_id = \"my-app-1\"\nclient_secret = {client_secret}\n\
         redirect_uri = \"https://app.example.com/oauth/highlevel/callback\"\n\
         scopes = [\"contacts.readonly\"]\nstate = \"when_present\"\n\
         token_url = \"http://127.0.0.1:{}/oauth/token\"\n",
        ports.highlevel
    );
    let shipped = dev::workspace_root().join("deploy/sources/slack.toml");
    let slack = std::fs::read_to_string(shipped).unwrap();
    let slack = [
        ("{ env = \"SLACK_SIGNING_SECRET\" }", file("slack-secret", SLACK_SIGNING_SECRET)),
        ("{ env = \"SLACK_CLIENT_SECRET\" }", client_secret),
        ("https://slack.com/api", format!("http://127.0.0.1:{}/api", ports.slack)),
    ]
    .into_iter()
    .fold(slack, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, &to)
    });
    let push = format!(
        "[worker.push.app]\nurl = \"http://127.0.0.1:{}/\"\nallow_private = true\n\
         secrets = [{}, {}]\n",
        ports.push,
        file("push-secret", PUSH_SECRET),
        file("push-key", &format!("whsk_{}", BASE64_STANDARD.encode(PUSH_SEED))),
    );
    let renewer = world.secrets.path("nats-renewer-password");
    let renewal = format!(
        "[worker.token_renewal]\nnats_user = \"renewer\"\nevery_ms = 100\n\
         nats_password = {{ file = \"{}\" }}\n",
        renewer.display()
    );
    [highlevel, slack, push, renewal].join("\n")
}

/// A copy of the client beside the build, with the contract where it looks for it.
fn copied(client: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("client-{client}"));
    let folder = root.join("clients").join(client);
    std::fs::create_dir_all(root.join("docs")).unwrap();
    std::fs::create_dir_all(root.join("clients")).unwrap();
    let workspace = dev::workspace_root();
    std::fs::copy(workspace.join("docs/openapi.json"), root.join("docs/openapi.json")).unwrap();
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(workspace.join("clients").join(client))
        .output()
        .unwrap();
    for file in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
        let to = folder.join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(workspace.join("clients").join(client).join(file), to).unwrap();
    }
    folder
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Whether to go on; a machine that must test everything fails.
fn is_there(installed: bool, what: &str) -> bool {
    let required = std::env::var_os("MOORING_TEST_SDKS").is_some();
    assert!(installed || !required, "MOORING_TEST_SDKS is set, and {what}");
    if !installed {
        eprintln!("not tested: {what}");
    }
    installed
}

/// A Python with what is in `requirements.txt` of this folder, or why there is none.
pub(crate) fn python_environment(name: &str, folder: &Path) -> Option<PathBuf> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-environment"));
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    let installed = succeeds(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        && succeeds(
            Command::new(environment.join("bin/python"))
                .args(install)
                .arg("--requirement")
                .arg(folder.join("requirements.txt")),
        );
    let what = format!("pip is not here, or cannot install what {name} is tested with");
    is_there(installed, &what).then_some(environment)
}

/// What it printed.
pub(crate) fn passed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{printed}\n{failed}");
    printed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_and_the_sdks_with_it_work() {
    let folder = copied("node");
    let npm = |args: &[&str]| {
        let mut npm = Command::new("npm");
        npm.args(args).current_dir(&folder);
        npm
    };
    let installed = succeeds(&mut npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"]));
    if !is_there(
        installed,
        "npm is not here, or cannot install what the Node client is tested with",
    ) {
        return;
    }
    let types = folder.join("src/openapi.ts");
    let committed = std::fs::read_to_string(&types).unwrap();
    passed(&mut npm(&["run", "generate"]));
    assert!(
        std::fs::read_to_string(&types).unwrap() == committed,
        "clients/node/src/openapi.ts differs: run `npm run generate` there"
    );
    let stack = Stack::start().await;
    let tests = tokio::task::spawn_blocking({
        let (mut command, envs) = (npm(&["test"]), stack.envs());
        move || passed(command.envs(envs))
    });
    let printed = tests.await.unwrap();
    assert!(printed.contains("# skipped 0"), "{printed}");

    // It can be given away.
    let packed = passed(&mut npm(&["pack", "--json", "--dry-run"]));
    for file in
        ["README.md", "dist/index.js", "dist/index.d.ts", "dist/highlevel.js", "dist/slack.js"]
    {
        assert!(packed.contains(&format!("\"{file}\"")), "{file}: {packed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_and_the_sdks_with_it_work() {
    let folder = copied("python");
    let Some(environment) = python_environment("client-python", &folder.join("tests")) else {
        return;
    };
    let python = |args: &[&str]| {
        let mut python = Command::new(environment.join("bin/python"));
        python.args(args).current_dir(&folder).env("PYTHONPATH", folder.join("src"));
        python
    };
    let types = folder.join("src/mooring_client/openapi.py");
    let committed = std::fs::read_to_string(&types).unwrap();
    let tools = std::env::join_paths([environment.join("bin"), "/usr/bin".into(), "/bin".into()]);
    passed(Command::new("sh").arg("generate.sh").current_dir(&folder).env("PATH", tools.unwrap()));
    assert!(
        std::fs::read_to_string(&types).unwrap() == committed,
        "clients/python/src/mooring_client/openapi.py differs: run generate.sh there"
    );
    passed(&mut python(&["-m", "mypy"]));
    let stack = Stack::start().await;
    let tests = tokio::task::spawn_blocking({
        let (mut command, envs) = (python(&["-m", "pytest"]), stack.envs());
        move || passed(command.envs(envs))
    });
    let printed = tests.await.unwrap();
    assert!(printed.contains(" passed") && !printed.contains("skipped"), "{printed}");

    // It can be given away.
    passed(&mut python(&["-m", "build", "--no-isolation"]));
}
