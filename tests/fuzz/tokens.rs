//! Secrets that are not in a callback: answers with tokens, and the header of
//! SecurityScorecard.

use domain::event::{Fact, Grant};
use domain::id::InstallationId;
use domain::platform::Platform;
use domain::platform::securityscorecard::AppSecrets;
use domain::tokens::{AnswerForm, Issued, Tokens};
use secrecy::ExposeSecret as _;

use crate::adapters::{becomes_an_event, tells_no_secret, token_owner};
use crate::mutate::Input;
use crate::world::{FINGERPRINTS, now};

pub(crate) fn answers() -> Vec<Input> {
    [
        r#"{"access_token":"canary-0123456789abcdef-secret","token_type":"Bearer","expires_in":86399,"refresh_token":"canary-0123456789abcdef-secret","scope":"contacts.readonly contacts.write","userType":"Location","companyId":"c1","locationId":"l1","userId":"u1"}"#,
        r#"{"accessToken":"canary-0123456789abcdef-secret","expiresIn":"3600","refreshToken":"canary-0123456789abcdef-secret","scope":["a","b"],"companyId":"c1"}"#,
    ]
    .map(|answer| Input::new("answer", &[answer]))
    .into()
}

pub(crate) fn answer(input: &Input) {
    let issued = match Issued::parse(&input.parts[0], now(), &AnswerForm::default()) {
        Ok(issued) => issued,
        Err(refused) => return tells_no_secret(&format!("{refused} {refused:?}")),
    };
    tells_no_secret(&format!("{:?}", issued.tokens));
    let identity = match token_owner(Platform::HighLevel, &issued) {
        Ok(identity) => identity,
        Err(refused) => return tells_no_secret(&format!("{refused} {refused:?}")),
    };
    InstallationId::parse(identity.installation_id.as_str()).unwrap();
    let access_token = issued.tokens.access_token.clone();
    let callback = issued.callback(identity, Grant::AuthorizationCode, &FINGERPRINTS).unwrap();
    if let Fact::Authorized { credential, .. } = &callback.fact {
        let again = Tokens::from_secret(&credential.secret).unwrap();
        assert_eq!(again.access_token.expose_secret(), access_token.expose_secret());
    }
    becomes_an_event(callback, input.parts[0].len());
}

pub(crate) fn app_secrets_seeds() -> Vec<Input> {
    [r#"{"ACCESS_TOKEN":"canary-0123456789abcdef-secret","ACCOUNT":"ada","EMPTY":""}"#, "{}"]
        .map(|header| Input::new("header", &[header]))
        .into()
}

pub(crate) fn app_secrets(input: &Input) {
    let secrets = match AppSecrets::parse(&input.parts[0]) {
        Ok(secrets) => secrets,
        Err(refused) => return tells_no_secret(&format!("{refused} {refused:?}")),
    };
    for key in ["ACCESS_TOKEN", "ACCOUNT", "EMPTY"] {
        if let Some(secret) = secrets.get(key) {
            assert!(secrets.matches(key, secret));
            assert!(!secrets.matches(key, &format!("{}x", secret.expose_secret()).into()));
        }
    }
    assert!(input.parts[0].len() <= 16 * 1024);
}
