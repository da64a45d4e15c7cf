// The handler that the platform's guide sketches
// (https://docs.blnkfinance.com/cloud/apps/installation), with its store in Postgres: the key is
// encrypted, the row is inserted, and the answer comes after the commit.
//
//   node server.js <port> <postgres url> <processes>

import cluster from "node:cluster";
import { createCipheriv, randomBytes } from "node:crypto";
import express from "express";
import pg from "pg";

const [port, url, processes] = process.argv.slice(2);
const key = randomBytes(32); // of this run: nobody reads it back

function encryptSecret(secret) {
  const nonce = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  const sealed = Buffer.concat([cipher.update(secret, "utf8"), cipher.final()]);
  return Buffer.concat([nonce, sealed, cipher.getAuthTag()]).toString("base64");
}

function serve() {
  const pool = new pg.Pool({ connectionString: url, max: 32 / Number(processes) });
  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.use(express.json());
  app.get("/readyz", (_req, res) => res.send("ok"));
  app.post("/callback", async (req, res) => {
    const event = req.body;
    if (event.idempotency_key?.startsWith("install:")) {
      await pool.query({
        name: "save",
        text: `INSERT INTO installs (installed_app_id, app_id, instance_id, api_key_encrypted,
                 api_key_prefix, granted_permissions, status, idempotency_key)
               VALUES ($1, $2, $3, $4, $5, $6, 'active', $7) ON CONFLICT (idempotency_key) DO NOTHING`,
        values: [
          event.installed_app_id,
          event.app_id,
          event.instance_id,
          encryptSecret(event.api_key),
          event.api_key_prefix,
          JSON.stringify(event.granted_permissions),
          event.idempotency_key,
        ],
      });
      return res.status(200).json({ ok: true });
    }
    return res.status(422).json({ ok: false });
  });
  app.listen(Number(port), "127.0.0.1");
}

if (Number(processes) > 1 && cluster.isPrimary) {
  for (let i = 0; i < Number(processes); i += 1) cluster.fork();
} else {
  serve();
}
