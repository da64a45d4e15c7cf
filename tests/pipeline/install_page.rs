//! SecurityScorecard's install page: what is typed is sealed and appended, then
//! posted on by the browser itself.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::response::Redirect;
use axum::routing::{get, post};
use fantoccini::{ClientBuilder, Locator};
use reqwest::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, LOCATION, REFERRER_POLICY,
    RETRY_AFTER, SET_COOKIE,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::world::{DEADLINE, Setup, World, eventually};

const SECRET: &str = "ssc-token-5Qw8Zr2Lk";
const FORM: &str = "application/x-www-form-urlencoded";

/// The platform: keeps what browsers post.
struct Platform {
    url: String,
    /// Where it sends browsers in the end.
    next: String,
    posted: Posted,
}

type Posted = Arc<Mutex<Vec<String>>>;

impl Platform {
    async fn start() -> Self {
        async fn keep(State(found): State<(Posted, String)>, body: String) -> Redirect {
            let (posted, next) = found;
            posted.lock().unwrap().push(body);
            Redirect::to(&next)
        }
        // Its marketplace, which is another origin.
        let marketplace = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let next = format!("http://{}/installed", marketplace.local_addr().unwrap());
        let router = Router::new().route("/installed", get(|| async { "installed" }));
        tokio::spawn(async move { axum::serve(marketplace, router).await });
        let posted = Posted::default();
        let path = "/apps/installation-data";
        let router =
            Router::new().route(path, post(keep)).with_state((Arc::clone(&posted), next.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, next, posted }
    }

    fn posted(&self) -> Vec<String> {
        self.posted.lock().unwrap().clone()
    }
}

async fn start(platform: &Platform) -> World {
    let world = World::servers(Setup::default());
    configure(&world, &platform.url);
    world.with_services().await
}

pub(crate) fn configure(world: &World, complete_url: &str) {
    let manifest = json!({
        "name": "Vendor <Watch>",
        "secrets": [
            { "key": "ACCESS_TOKEN", "description": "Your access token", "value_required": true },
            { "key": "ACCOUNT", "description": "The name of your account" },
        ],
    });
    // The marketplace of the tests is another port of this machine.
    let redirect_host = "http://127.0.0.1:*";
    std::fs::write(world.folder.path().join("manifest.json"), manifest.to_string()).unwrap();
    world.configure(&format!(
        "[sources.ssc]\nplatform = \"securityscorecard\"\napp_ids = [\"app_1\"]\n\
         verification.unverified = true\n\
         [sources.ssc.install_page]\nmanifest = \"manifest.json\"\n\
         complete_url = \"{complete_url}\"\nredirect_hosts = [\"{redirect_host}\"]\nvisible = [\"ACCOUNT\"]\n"
    ));
}

/// A page as a browser would keep it.
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) html: String,
    cookie: String,
    pub(crate) action: String,
    pub(crate) retry_after: Option<String>,
    /// Where the browser is sent.
    to: Option<String>,
}

async fn page(answer: reqwest::Response, cookie: &str) -> Page {
    let header = |name| answer.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
    assert_eq!(header(CACHE_CONTROL).as_deref(), Some("no-store"));
    assert_eq!(header(REFERRER_POLICY).as_deref(), Some("no-referrer"));
    let given = header(SET_COOKIE).map(|it| it.split(';').next().unwrap().to_owned());
    let (status, to) = (answer.status().as_u16(), header(LOCATION));
    let policy = header(CONTENT_SECURITY_POLICY);
    let retry_after = header(RETRY_AFTER);
    let html = answer.text().await.unwrap();
    if to.is_none() {
        let policy = policy.unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; form-action 'self'"));
        assert!(policy.ends_with("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains(" http:;") && !policy.contains(" https:;"), "{policy}");
        assert!(!html.contains("<script"), "{html}");
    }
    let action = html.split_once("action=\"").map(|(_, rest)| rest.split('"').next().unwrap());
    let action = action.unwrap_or_default().to_owned();
    let cookie = given.unwrap_or_else(|| cookie.to_owned());
    Page { status, action, to, retry_after, cookie, html }
}

pub(crate) async fn show(world: &World, query: &str) -> Page {
    let url = world.ingest_url(0, &format!("/install/ssc?{query}"));
    page(world.http.get(url).send().await.unwrap(), "").await
}

pub(crate) async fn submit(world: &World, shown: &Page, body: &str) -> Page {
    submit_to(world, 0, shown, body).await
}

pub(crate) async fn submit_to(world: &World, ingest: usize, shown: &Page, body: &str) -> Page {
    let url = world.ingest_url(ingest, &format!("/install/ssc{}", shown.action));
    let request = world.http.post(url).header(COOKIE, &shown.cookie).header(CONTENT_TYPE, FORM);
    page(request.body(body.to_owned()).send().await.unwrap(), &shown.cookie).await
}

async fn the_installation(world: &World) -> Value {
    let list = world.read("/v1/installations?source=ssc").await.body;
    let list = list["installations"].as_array().unwrap().clone();
    assert_eq!(list.len(), 1, "{list:?}");
    list[0].clone()
}

pub(crate) async fn secrets(world: &World) -> Value {
    let id = the_installation(world).await["installation_id"].as_str().unwrap().to_owned();
    let answer = world.credential(&id.replace(':', "%3A")).await;
    serde_json::from_str(answer.body["credential"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_is_sealed_and_then_posted_on() {
    let platform = Platform::start().await;
    let world = start(&platform).await;
    let shown = show(&world, "installation_id=cap-7f3a").await;
    assert_eq!(shown.status, 200);
    assert!(shown.html.contains("<h1>Install Vendor &#60;Watch&#62;</h1>"), "{}", shown.html);
    assert!(shown.html.contains("name=\"installation_id\" value=\"cap-7f3a\""), "{}", shown.html);
    let typed = format!("installation_id=cap-7f3a&ACCESS_TOKEN={SECRET}&ACCOUNT=");
    let done = submit(&world, &shown, &typed).await;
    assert_eq!((done.status, done.to.as_deref()), (307, Some(platform.url.as_str())));
    assert!(!done.html.contains(SECRET));

    world.wait_applied().await;
    let found = the_installation(&world).await;
    assert_eq!((&found["status"], &found["app_id"]), (&json!("pending"), &json!("app_1")));
    assert!(!found.to_string().contains("cap-7f3a"), "the id is a capability: {found}");
    assert_eq!(secrets(&world).await, json!({ "ACCESS_TOKEN": SECRET }));
    // What was typed last counts, even if it was typed before.
    let anew = "installation_id=cap-7f3a&ACCESS_TOKEN=another&ACCOUNT=acme";
    let shown = show(&world, "installation_id=cap-7f3a").await;
    assert_eq!(submit(&world, &shown, anew).await.status, 307);
    world.wait_applied().await;
    assert_eq!(secrets(&world).await, json!({ "ACCESS_TOKEN": "another", "ACCOUNT": "acme" }));
    let shown = show(&world, "installation_id=cap-7f3a").await;
    assert_eq!(submit(&world, &shown, &typed).await.status, 307);
    world.wait_applied().await;
    assert_eq!(secrets(&world).await, json!({ "ACCESS_TOKEN": SECRET }));
    assert_eq!(world.callbacks_in_log().await, 3);
    for log in [world.ingest_log(), world.worker_log()] {
        assert!(!log.contains(SECRET) && !log.contains("cap-7f3a"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_beside_its_field_and_no_secret_comes_back() {
    let platform = Platform::start().await;
    let world = start(&platform).await;
    assert_eq!(show(&world, "").await.status, 400);
    assert_eq!(show(&world, "installation=").await.status, 400);
    let shown = show(&world, "installation=cap-1").await;

    let wrong = [
        ("installation=cap-1&ACCESS_TOKEN=%20&ACCOUNT=acme", "This is needed."),
        ("installation=cap-1&ACCOUNT=acme", "This is needed."),
        ("installation=cap-1&ACCESS_TOKEN=tok-9&ACCOUNT=acme&OTHER=x", "does not ask for"),
    ];
    for (typed, problem) in wrong {
        let again = submit(&world, &shown, typed).await;
        assert_eq!(again.status, 422, "{typed}");
        for part in [problem, "role=\"alert\"", "value=\"acme\"", "<title>Error: Install"] {
            assert!(again.html.contains(part), "{part} is missing in:\n{}", again.html);
        }
        assert!(!again.html.contains("tok-9"));
    }
    let long = format!("installation=cap-1&ACCESS_TOKEN={}", "x".repeat(9_000));
    assert!(submit(&world, &shown, &long).await.html.contains("longer than 8192 bytes"));
    let huge = format!("installation=cap-1&ACCESS_TOKEN={}", "x".repeat(90_000));
    assert_eq!(submit(&world, &shown, &huge).await.status, 400);

    // A form that another site made, or for another installation.
    let typed = "installation=cap-1&ACCESS_TOKEN=tok-9&ACCOUNT=acme";
    let other = show(&world, "installation=cap-2").await;
    let forged = [
        Page { cookie: String::new(), ..show(&world, "installation=cap-1").await },
        Page { action: String::new(), ..show(&world, "installation=cap-1").await },
        Page { cookie: shown.cookie.clone(), ..other },
    ];
    for form in forged {
        let again = submit(&world, &form, typed).await;
        assert_eq!(again.status, 403);
        assert!(again.html.contains("open for too long") && !again.html.contains("tok-9"));
        // What may be seen need not be typed again.
        assert!(again.html.contains("value=\"acme\""));
    }
    assert_eq!(world.callbacks_in_log().await, 0);
    assert_eq!(platform.posted(), Vec::<String>::new());
}

/// Ended when it is dropped.
struct ChromeDriver {
    process: Child,
    url: String,
}

impl Drop for ChromeDriver {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// `None`, and a word about it, where the machine has no browser.
async fn chrome_driver() -> Option<ChromeDriver> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name| std::env::split_paths(&path).map(|it| it.join(name)).find(|it| it.is_file());
    let Some(driver) = find("chromedriver") else {
        assert!(
            std::env::var_os("MOORING_TEST_BROWSER").is_none(),
            "MOORING_TEST_BROWSER is set, and there is no chromedriver in PATH"
        );
        eprintln!("not tested in a browser: there is no chromedriver in PATH");
        return None;
    };
    let port = dev::ports::free_port().unwrap();
    let mut command = Command::new(driver);
    command.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
    let driver =
        ChromeDriver { process: command.spawn().unwrap(), url: format!("http://127.0.0.1:{port}") };
    let http = service::http_client::builder().no_proxy().build().unwrap();
    let status = format!("{}/status", driver.url);
    assert!(eventually(async || http.get(&status).send().await.is_ok()).await);
    Some(driver)
}

async fn browser(driver: &ChromeDriver, profile: PathBuf) -> fantoccini::Client {
    let profile = format!("--user-data-dir={}", profile.display());
    let args = json!([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--window-size=800,900",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        profile,
    ]);
    let Value::Object(wanted) = json!({ "goog:chromeOptions": { "args": args } }) else { panic!() };
    let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
    builder.capabilities(wanted).connect(&driver.url).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_works_in_a_browser_without_scripts() {
    let Some(driver) = chrome_driver().await else { return };
    let platform = Platform::start().await;
    let world = start(&platform).await;
    let client = browser(&driver, world.folder.path().join("browser")).await;
    // Browsers keep a Secure cookie of this name without TLS, too.
    let url = world.ingest_url(0, "/install/ssc?installation=cap-1");
    client.goto(&url.replace("127.0.0.1", "localhost")).await.unwrap();
    keep_screenshot(&client, "install-page").await;

    let typed = async |label: &str, text: &str| {
        let field = format!("//label[contains(., '{label}')]/following-sibling::input");
        client.find(Locator::XPath(&field)).await.unwrap().send_keys(text).await.unwrap();
    };
    let press = async || {
        client.find(Locator::Css("button")).await.unwrap().click().await.unwrap();
    };
    typed("The name of your account", "acme").await;
    // What the browser itself would check is left to us once.
    client.execute("document.forms[0].noValidate = true", vec![]).await.unwrap();
    press().await;
    client.wait().at_most(DEADLINE).for_element(Locator::Css("[role=alert]")).await.unwrap();
    keep_screenshot(&client, "install-page-problem").await;
    typed("Your access token", SECRET).await;
    press().await;
    assert!(eventually(async || !platform.posted().is_empty()).await);
    let posted = &platform.posted()[0];
    assert_eq!(*posted, format!("installation=cap-1&ACCESS_TOKEN={SECRET}&ACCOUNT=acme"));
    let shows_the_platform = async || {
        let at = client.current_url().await.unwrap();
        at.as_str() == platform.next
    };
    assert!(eventually(shows_the_platform).await);
    client.close().await.unwrap();
    world.wait_applied().await;
    assert_eq!(secrets(&world).await, json!({ "ACCESS_TOKEN": SECRET, "ACCOUNT": "acme" }));
}

/// For people to look at, in the folder that MOORING_SCREENSHOTS names.
async fn keep_screenshot(client: &fantoccini::Client, name: &str) {
    let Some(folder) = std::env::var_os("MOORING_SCREENSHOTS") else { return };
    let picture = client.screenshot().await.unwrap();
    std::fs::write(PathBuf::from(folder).join(format!("{name}.png")), picture).unwrap();
}
