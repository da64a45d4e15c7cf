//! The contract of the read API, held against what a worker answers by a tool that knows nothing
//! of Mooring: <https://schemathesis.readthedocs.io>.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use reqwest::header::{ETAG, IF_NONE_MATCH};
use serde_json::{Value, json};

use crate::payload::{install, uninstall};
use crate::world::{Setup, World};

/// Of each request.
const EXAMPLES: &str = "40";

/// Installs the tool beside the build; `None` where that cannot be done.
fn tool() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
    let run = |command: &mut Command| command.output().is_ok_and(|it| it.status.success());
    let requirements = folder_of_test().join("requirements.txt");
    let installed = run(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        && run(Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(requirements));
    let required = std::env::var_os("MOORING_TEST_SDKS").is_some();
    assert!(
        installed || !required,
        "MOORING_TEST_SDKS is set, and pip cannot install schemathesis"
    );
    installed.then(|| folder.join("bin/schemathesis"))
}

fn folder_of_test() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline/openapi")
}

fn schemathesis(tool: &Path, world: &World, contract: &str, more: &[&str]) -> Output {
    let token = world.secrets.read("read-token").unwrap();
    Command::new(tool)
        .arg("--config-file")
        .arg(folder_of_test().join("schemathesis.toml"))
        .args(["run", contract, "--seed", "1", "--no-color"])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--max-examples", EXAMPLES, "--checks", "all", "--rate-limit", "80/s"])
        // A cursor is a text, and not every text is one.
        .args(["--exclude-checks", "positive_data_acceptance"])
        // How fast this machine is says nothing of the contract.
        .args(["--suppress-health-check", "all"])
        .args(more)
        .current_dir(world.folder.path())
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_its_contract_says() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.acknowledged(&uninstall("b")).await;
    world.wait_for_status("b", "inactive").await;
    let Some(tool) = tool() else {
        eprintln!("not tested: python3 or pip is not here, or cannot install schemathesis");
        return;
    };
    let url = world.worker_url(0, "/v1/openapi.json");
    let checked = schemathesis(&tool, &world, &url, &[]);
    let said = String::from_utf8_lossy(&checked.stdout);
    eprintln!("{said}");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    // It sees a contract that says something else.
    let mut wrong = world.read("/v1/openapi.json").await.body;
    wrong["components"]["schemas"]["Installation"]["properties"]["status"]["enum"] =
        json!(["another"]);
    let file = world.folder.path().join("wrong.json");
    std::fs::write(&file, wrong.to_string()).unwrap();
    let base = world.worker_url(0, "");
    let only = ["--url", &base, "--include-path", "/v1/installations", "--phases", "fuzzing"];
    let checked = schemathesis(&tool, &world, &file.to_string_lossy(), &only);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.status.success() && said.contains("Response violates schema"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_waited_for_and_is_sent_again_only_if_it_has_changed() {
    let mut world = World::start(Setup::default()).await;
    let url = world.worker_url(0, "/v1/installations/a");
    let token = world.secrets.read("read-token").unwrap();
    let get = |url: &str| world.http.get(url).bearer_auth(&token);

    assert_eq!(get(&url).send().await.unwrap().status(), 404);
    let waiting = tokio::spawn(get(&format!("{url}?wait=30")).send());
    world.acknowledged(&install("a")).await;
    let found = waiting.await.unwrap().unwrap();
    assert_eq!(found.status(), 200);
    let tag = found.headers()[ETAG].clone();
    assert_eq!(found.json::<Value>().await.unwrap()["status"], "active");
    let asked = Instant::now();
    let missing = get(&world.worker_url(0, "/v1/installations/none?wait=1")).send().await.unwrap();
    assert_eq!(missing.status(), 404);
    assert!(asked.elapsed() >= Duration::from_secs(1));

    let again = get(&url).header(IF_NONE_MATCH, &tag).send().await.unwrap();
    assert_eq!((again.status().as_u16(), &again.headers()[ETAG]), (304, &tag));
    assert_eq!(again.bytes().await.unwrap().len(), 0);
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    let changed = get(&url).header(IF_NONE_MATCH, &tag).send().await.unwrap();
    assert_eq!(changed.status(), 200);
    assert_ne!(changed.headers()[ETAG], tag);
    let wrong = world.read("/v1/installations/a?wait=51").await;
    assert_eq!((wrong.status, wrong.problem()), (400, "invalid-parameter"));

    // Neither a worker that ends waits for what does not come.
    let none = world.worker_url(0, "/v1/installations/none?wait=50");
    let waiting = tokio::spawn(get(&none).send());
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.stop_workers();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 404);
}
