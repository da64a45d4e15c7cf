//! A platform has one URL for everything: what is about no installation goes to the app, as it
//! came, and is lost as little as an install.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{Consumer, pull, push};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::platforms::{HighLevel, event};
use crate::world::{Setup, World};

const ROOM_BYTES: u64 = 20_000;

async fn start() -> HighLevel {
    let setup = Setup::default().env("MOORING__STREAM__FORWARDED_MAX_BYTES", ROOM_BYTES);
    HighLevel::start_with(setup, |world| {
        world.replace_in_config(
            "platform = \"highlevel\"",
            "platform = \"highlevel\"\nforward = [\"*\"]\nignore = [\"AppPaymentStatus\"]",
        );
    })
    .await
}

/// As HighLevel documents it: no appId.
fn contact(number: usize) -> Value {
    json!({
        "type": "ContactCreate", "locationId": "loc_1", "id": format!("c{number}"),
        "email": "a@b.example", "note": "x".repeat(500), "webhookId": format!("w{number}"),
    })
}

/// What the app's own service does.
struct App(Consumer<pull::Config>);

impl App {
    async fn connect(world: &World) -> Self {
        let jetstream = world.jetstream_as("app", &world.nats.credentials().app).await;
        let stream = jetstream.get_stream("FORWARDED").await.unwrap();
        Self(stream.get_consumer("app").await.unwrap())
    }

    async fn take(&self, max: usize) -> Vec<Message> {
        let fetch = self.0.fetch().max_messages(max).messages().await.unwrap();
        let taken: Vec<Message> = fetch.map(Result::unwrap).collect().await;
        for message in &taken {
            message.double_ack().await.unwrap();
        }
        taken
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_no_installation_goes_to_the_app_as_it_came() {
    let highlevel = start().await;
    let world = &highlevel.world;
    let answer = highlevel.send(&contact(1)).await;
    assert_eq!((answer.status, answer.body), (200, json!({ "ok": true, "duplicate": false })));
    let again = highlevel.send(&contact(1)).await;
    assert_eq!((again.status, &again.body["duplicate"]), (200, &json!(true)));
    let mut of_another = event("ContactCreate", "w2", "10.000", json!({}));
    of_another["appId"] = json!("another-app");
    for event in [of_another, event("AppPaymentStatus", "w3", "10.000", json!({}))] {
        let answer = highlevel.send(&event).await;
        assert_eq!((answer.status, &answer.body["ignored"]), (200, &json!(true)), "{answer:?}");
    }
    let install = event("INSTALL", "w4", "10.000", json!({ "locationId": "l1" }));
    assert!(!highlevel.acknowledged(&install).await);
    let forged = highlevel.send_signed(contact(5).to_string(), "bm90IGEgc2lnbmF0dXJl").await;
    assert_eq!(forged.status, 401);

    let app = App::connect(world).await;
    let taken = app.take(10).await;
    let [only] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(only.subject.as_str(), "forwarded.highlevel.ContactCreate");
    assert_eq!(only.payload, contact(1).to_string());
    let headers = only.headers.as_ref().unwrap();
    assert_eq!(headers.get("content-type").unwrap().as_str(), "application/json");
    assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), "highlevel%3Aw1");
    assert_eq!(world.callbacks_in_log().await, 1, "the install");

    // Whose password reads callbacks of the app, and no more.
    let mut jetstream = world.jetstream_as("app", &world.nats.credentials().app).await;
    jetstream.set_timeout(Duration::from_millis(500));
    assert!(jetstream.get_stream("INSTALLATIONS").await.is_err());
    let stream = jetstream.get_stream("FORWARDED").await.unwrap();
    let elsewhere = push::Config {
        deliver_subject: "installations.highlevel.0".to_owned(),
        ..push::Config::default()
    };
    assert!(stream.create_consumer(elsewhere).await.is_err());
    let published = jetstream.publish("forwarded.highlevel.ContactCreate", "forged".into()).await;
    assert!(published.unwrap().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_app_does_not_take_is_refused_in_the_end_and_stops_no_install() {
    let highlevel = start().await;
    let world = &highlevel.world;
    let mut kept = 0;
    let refused = loop {
        let answer = highlevel.send(&contact(kept)).await;
        if answer.status != 200 {
            break answer;
        }
        kept += 1;
        assert!(kept < 100);
    };
    assert_eq!((refused.status, refused.problem()), (429, "not-forwarded"));
    assert!(kept > 10, "{kept}");
    let install = event("INSTALL", "w-install", "10.000", json!({ "locationId": "l1" }));
    assert!(!highlevel.acknowledged(&install).await);

    // Nothing is lost: what it takes makes room.
    let app = App::connect(world).await;
    let taken = app.take(100).await;
    assert_eq!(taken.len(), kept);
    assert_eq!(highlevel.send(&contact(kept)).await.status, 200);

    let doctor = async || {
        let found = world.operate(&["doctor", "--json"]).await;
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        let found = found.as_array().unwrap().iter().find(|it| it["check"] == "FORWARDED");
        found.unwrap()["verdict"].clone()
    };
    assert_eq!(doctor().await, "ok");
    world.jetstream().await.delete_stream("FORWARDED").await.unwrap();
    assert_eq!(highlevel.send(&contact(kept + 1)).await.status, 429);
    assert_eq!(doctor().await, "failed");
}
