// Prints callbacks of marketplaces as JSON: signed by the platform's official SDK where it signs,
// and else signed as the platform documents it and accepted by the SDK that its users verify with.
// What no SDK signs or verifies is signed by node's own crypto, by the documented formula.
//
//   npm ci && node vectors.mjs > vectors.json

import crypto from "node:crypto";
import assert from "node:assert";
import jsonwebtoken from "jsonwebtoken";
import Stripe from "stripe";
import { sign as signGitHub } from "@octokit/webhooks-methods";
import { verifySlackRequest } from "@slack/bolt";
import { Webhook } from "standardwebhooks";
import "@shopify/shopify-api/adapters/node";
import { shopifyApi } from "@shopify/shopify-api";
import { AppStrategy, createClient } from "@wix/sdk";

const secret = "a-signing-secret-of-the-test";
// The SDKs check times by the clock.
const now = Math.floor(Date.now() / 1000);
const rfc3339 = (seconds) => new Date(seconds * 1000).toISOString();
const hmac = (algorithm, text, encoding = "hex", key = secret) =>
  crypto.createHmac(algorithm, key).update(text).digest(encoding);
const rsa = () =>
  crypto.generateKeyPairSync("rsa", {
    modulusLength: 2048,
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem" },
  });

const vectors = [];
function vector(source, by, request, expect, more = {}) {
  const { method = "POST", query = "", headers = {}, body } = request;
  vectors.push({ source, by, at: now, method, query, headers, body, expect, ...more });
}

// Slack: https://docs.slack.dev/reference/events/app_uninstalled
for (const [body, expect] of [
  [
    { token: "XXYYZZ", team_id: "T123", api_app_id: "A0123456789", event: { type: "app_uninstalled" },
      type: "event_callback", event_id: "Ev123", event_time: now - 2 },
    { kind: "uninstalled", installation_id: "T123" },
  ],
  [
    { token: "Jhj5dZrVaK7ZwHHjRyZWjbDl", challenge: "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P",
      type: "url_verification" },
    { challenge: "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P" },
  ],
]) {
  const text = JSON.stringify(body);
  const headers = {
    "x-slack-request-timestamp": String(now),
    "x-slack-signature": `v0=${hmac("sha256", `v0:${now}:${text}`)}`,
  };
  const checked = { "x-slack-request-timestamp": now, "x-slack-signature": headers["x-slack-signature"] };
  verifySlackRequest({ signingSecret: secret, body: text, headers: checked, nowMilliseconds: now * 1000 });
  vector("slack", "@slack/bolt checks", { headers, body: text }, expect);
}

// Zoom: https://developers.zoom.us/docs/api/webhooks/
for (const [body, expect] of [
  [
    { event: "app_deauthorized", event_ts: now * 1000, payload: { account_id: "EabCDEFghiLHMA",
      user_id: "z9jkdsfsdfjhdkfjQ", signature: "827edc34", deauthorization_time: rfc3339(now - 2),
      client_id: "ADZ9k9bTWmGUoUbECUKU_a", user_data_retention: "false" } },
    { kind: "uninstalled", installation_id: "EabCDEFghiLHMA:z9jkdsfsdfjhdkfjQ" },
  ],
  [
    { event: "endpoint.url_validation", event_ts: now * 1000, payload: { plainToken: "qgg8vlvZRS6UYooatFL8Aw" } },
    { challenge: JSON.stringify({
      encryptedToken: hmac("sha256", "qgg8vlvZRS6UYooatFL8Aw"), plainToken: "qgg8vlvZRS6UYooatFL8Aw" }) },
  ],
]) {
  const text = JSON.stringify(body);
  const headers = {
    "x-zm-request-timestamp": String(now),
    "x-zm-signature": `v0=${hmac("sha256", `v0:${now}:${text}`)}`,
  };
  vector("zoom", "documented formula", { headers, body: text }, expect);
}

// GitHub: https://docs.github.com/webhooks/webhook-events-and-payloads#installation
for (const [action, kind, more] of [
  ["created", "installed", {}],
  ["suspend", "suspended", { suspended_at: rfc3339(now) }],
  ["unsuspend", "resumed", {}],
  ["new_permissions_accepted", "permissions_changed", { permissions: { issues: "write", metadata: "read" } }],
  ["deleted", "uninstalled", {}],
]) {
  const text = JSON.stringify({
    action,
    installation: { id: 957387, app_id: 12345, account: { login: "octo-org", id: 21031067 },
      permissions: { issues: "read", metadata: "read" }, created_at: rfc3339(now - 86400),
      updated_at: rfc3339(now), suspended_at: null, ...more },
    repositories: Array.from({ length: 5 }, (_, id) => ({ id, name: `repository-${id}` })),
    sender: { login: "octocat", id: 1 },
  });
  const headers = {
    "x-github-event": "installation",
    "x-github-delivery": crypto.randomUUID(),
    "x-hub-signature-256": await signGitHub(secret, text),
  };
  vector("github", "@octokit/webhooks-methods signs", { headers, body: text },
    { kind, installation_id: "957387" });
}

// Shopify: https://shopify.dev/docs/apps/build/webhooks
{
  const shopify = shopifyApi({
    apiKey: "key", apiSecretKey: secret, apiVersion: "2026-04", isEmbeddedApp: false,
    hostName: "apps.example.com", logger: { log: () => {} },
  });
  const text = JSON.stringify({ id: 548380009, name: "Super Toys", myshopify_domain: "super-toys.myshopify.com",
    domain: null, email: "super@supertoys.com" });
  const headers = {
    "x-shopify-topic": "app/uninstalled",
    "x-shopify-hmac-sha256": hmac("sha256", text, "base64"),
    "x-shopify-shop-domain": "super-toys.myshopify.com",
    "x-shopify-api-version": "2026-04",
    "x-shopify-webhook-id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
    "x-shopify-event-id": "98880550-7158-44d4-b7cd-2c97c8a091b5",
    "x-shopify-triggered-at": rfc3339(now - 1),
  };
  const rawRequest = { method: "POST", url: "/", headers };
  const checked = await shopify.webhooks.validate({ rawBody: text, rawRequest });
  assert(checked.valid, JSON.stringify(checked));
  vector("shopify", "@shopify/shopify-api checks", { headers, body: text },
    { kind: "uninstalled", installation_id: "super-toys.myshopify.com" });
}

// Stripe: https://docs.stripe.com/webhooks/signature
for (const [type, kind] of [
  ["account.application.authorized", "installed"],
  ["account.application.deauthorized", "uninstalled"],
]) {
  const text = JSON.stringify({
    id: `evt_${kind}`, object: "event", account: "acct_1032D82eZvKYlo2C", api_version: "2026-08-26",
    created: now - 3, type, livemode: true, pending_webhooks: 1, request: { id: null, idempotency_key: null },
    data: { object: { id: "ca_32D88BD1qLklliziD7gYQvctJIhWBSQ7", object: "application", name: "My app" } },
  });
  const signature = Stripe.webhooks.generateTestHeaderString({ payload: text, secret, timestamp: now });
  // While a secret is rotated, both sign.
  const headers = { "stripe-signature": signature.replace("v1=", `v1=${"0".repeat(64)},v1=`) + ",v0=00" };
  Stripe.webhooks.constructEvent(text, headers["stripe-signature"], secret, 300, undefined, now * 1000);
  vector("stripe-connect", "stripe signs", { headers, body: text },
    { kind, installation_id: "acct_1032D82eZvKYlo2C" });
}

// monday.com: https://developer.monday.com/apps/docs/webhooks-1
for (const [type, kind] of [
  ["install", "installed"],
  ["app_subscription_changed", "updated"],
  ["uninstall", "uninstalled"],
]) {
  const text = JSON.stringify({
    type,
    data: { app_id: 1000000000, app_name: "My app", user_id: 3, user_email: "john@example.com", account_id: 42,
      version_data: { major: 1, minor: 2, patch: 0, type: "minor" }, timestamp: rfc3339(now - 5),
      subscription: { plan_id: "plan2", renewal_date: rfc3339(now + 86400), is_trial: false,
        billing_period: "monthly", days_left: 21 } },
  });
  const token = jsonwebtoken.sign({ dat: { app_id: 1000000000 }, iat: now, exp: now + 300 }, secret);
  vector("monday", "jsonwebtoken signs, as its guide verifies", { headers: { authorization: token }, body: text },
    { kind, installation_id: "42" });
}

// Wix: the body is a token with JSON inside of strings.
{
  const { publicKey, privateKey } = rsa();
  const appId = "c2f3d8b6-0b0e-4f43-8d3f-7f2f7a1d9a11";
  const wix = createClient({ auth: AppStrategy({ appId, publicKey }) });
  for (const [eventType, kind] of [["AppInstalled", "installed"], ["AppRemoved", "uninstalled"]]) {
    const data = JSON.stringify({ eventType, instanceId: "c0b0a1f2-5c55-4a5e-9a42-1d2e3f405060",
      data: JSON.stringify({ appId }), identity: JSON.stringify({ identityType: "WIX_USER", wixUserId: "u1" }) });
    const body = jsonwebtoken.sign({ data, iat: now, exp: now + 3600 }, privateKey, { algorithm: "RS256" });
    const said = await wix.webhooks.parseJWT(body);
    assert.equal(said.instanceId, "c0b0a1f2-5c55-4a5e-9a42-1d2e3f405060");
    vector("wix", "@wix/sdk checks", { headers: { "content-type": "text/plain" }, body },
      { kind, installation_id: "c0b0a1f2-5c55-4a5e-9a42-1d2e3f405060" }, { public_key: publicKey });
  }
}

// Atlassian Forge: https://developer.atlassian.com/platform/forge/forge-remote-invocation-contract/
{
  const { publicKey, privateKey } = rsa();
  const jwk = { ...crypto.createPublicKey(publicKey).export({ format: "jwk" }), kid: "forge-1", use: "sig", alg: "RS256" };
  const app = "ari:cloud:ecosystem::app/406d303d-0393-4ec4-ad7c-1435be94583a";
  const installation = "ari:cloud:ecosystem::installation/c3658f8e-8380-41e5-bfae-68f9ddffb8ab";
  for (const [key, kind] of [["mooring-installed", "installed"], ["mooring-uninstalled", "uninstalled"]]) {
    const claims = { iss: "forge/invocation-token", aud: app, iat: now, nbf: now, exp: now + 300, jti: key,
      app: { id: app, version: "7.0.0", installationId: installation, apiBaseUrl: "https://api.atlassian.com/ex/jira/1",
        environment: { type: "PRODUCTION", id: "ari:cloud:ecosystem::environment/1" },
        module: { type: "core:trigger", key } } };
    const token = jsonwebtoken.sign(claims, privateKey, { algorithm: "RS256", keyid: "forge-1" });
    const body = JSON.stringify({ id: installation, installerAccountId: "4ad9aa0c52dc1b420a791d12",
      app: { id: app, version: "7.0.0" } });
    vector("atlassian-forge", "jsonwebtoken signs, by the documented claims",
      { headers: { authorization: `Bearer ${token}` }, body }, { kind, installation_id: installation },
      { jwks: { keys: [jwk] } });
  }
}

// Pipedrive: https://pipedrive.readme.io/docs/app-uninstallation
vector("pipedrive", "documented form", {
  method: "DELETE",
  headers: { authorization: `Basic ${Buffer.from(`3a1f0c5b9d2e4f67:${secret}`).toString("base64")}` },
  body: JSON.stringify({ client_id: "3a1f0c5b9d2e4f67", company_id: 123, user_id: 456, timestamp: rfc3339(now - 1) }),
}, { kind: "uninstalled", installation_id: "123:456" });

// Vercel: https://vercel.com/docs/headers/request-headers#x-vercel-signature
{
  const text = JSON.stringify({ id: "uev_1", type: "integration-configuration.removed", createdAt: now * 1000,
    region: null, payload: { team: { id: "team_1" }, user: { id: "u_1" },
      configuration: { id: "icfg_3bwCLgxL8qt5kjRLcv2Dit7F", projectSelection: "all" } } });
  vector("vercel", "documented formula", { headers: { "x-vercel-signature": hmac("sha1", text) }, body: text },
    { kind: "uninstalled", installation_id: "icfg_3bwCLgxL8qt5kjRLcv2Dit7F" });
}

// Outreach: https://developers.outreach.io/client-extensions/app-lifecycle-webhooks/
for (const [eventName, kind] of [["install.created", "installed"], ["install.deleted", "uninstalled"]]) {
  const text = JSON.stringify({
    data: { type: "install", id: "INSTALL_ID", relationships: { app: { data: { type: "app", id: "S2S_GUID" } } } },
    meta: { deliveredAt: "2019-01-01T00:00:00", eventName },
  });
  const headers = { "outreach-webhook-signature": hmac("sha256", text), "content-type": "application/vnd.api+json" };
  vector("outreach", "documented formula", { headers, body: text }, { kind, installation_id: "INSTALL_ID" });
}

// Seismic: https://developer.seismic.com/seismicsoftware/docs/signing-secret-validation
for (const [event, kind] of [["install", "installed"], ["uninstall", "uninstalled"]]) {
  const text = JSON.stringify({ tenantId: "tenant-1", tenantName: "acme" });
  const headers = { "x-seismic-signature": hmac("sha256", text), "x-seismic-signature-old": "00" };
  vector("seismic", "documented formula", { query: `event=${event}`, headers, body: text },
    { kind, installation_id: "tenant-1" });
}

// Whop, by Standard Webhooks. Its library checks the time by its own clock, so that this one is of now.
{
  const webhook = new Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
  const text = JSON.stringify({ type: "app_installation.created", timestamp: rfc3339(now),
    data: { id: "insl_1", access_token: "at-of-the-test", refresh_token: "rt-of-the-test" } });
  const headers = { "webhook-id": "msg_1", "webhook-timestamp": String(now),
    "webhook-signature": webhook.sign("msg_1", new Date(now * 1000), text) };
  vector("standard-webhooks", "standardwebhooks signs", { headers, body: text },
    { kind: "installed", installation_id: "insl_1" }, { fresh: true });
}

console.log(JSON.stringify(vectors, null, 1));
