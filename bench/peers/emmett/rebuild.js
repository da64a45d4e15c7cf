// Fills an event store of emmett-postgresql with installs, of which every second installation is
// uninstalled again, and rebuilds a projection of them: what its own `rebuildPostgreSQLProjections`
// takes, printed as JSON.
//
//   node rebuild.js <postgres url> <events>

import {
  getPostgreSQLEventStore,
  pongoSingleStreamProjection,
  rebuildPostgreSQLProjections,
} from '@event-driven-io/emmett-postgresql';

const [connectionString, count] = process.argv.slice(2);
const events = Number(count);
const APPENDS_AT_ONCE = 16;
const BATCH = 1000;

const projection = pongoSingleStreamProjection({
  collectionName: 'installations',
  canHandle: ['Installed', 'Uninstalled'],
  evolve: (state, { type, data }) =>
    type === 'Installed'
      ? { status: 'active', permissions: data.granted_permissions, sealed: data.sealed }
      : { ...state, status: 'inactive', uninstalledAt: data.uninstalled_at },
});

// About as large as an event of ours in its log.
const installed = (id) => ({
  type: 'Installed',
  data: {
    installed_app_id: `instapp_${id}`,
    app_id: 'app_bench',
    instance_id: `inst_${id}`,
    granted_permissions: ['data:read', 'data:write'],
    idempotency_key: `install:instapp_${id}`,
    sealed: 'x'.repeat(160),
  },
});
const uninstalled = (id) => ({
  type: 'Uninstalled',
  data: {
    installed_app_id: `instapp_${id}`,
    uninstalled_at: new Date().toISOString(),
    idempotency_key: `uninstall:instapp_${id}`,
  },
});

const store = getPostgreSQLEventStore(connectionString);
await store.schema.migrate();

let appended = 0;
let next = 0;
const append = async () => {
  while (appended < events) {
    const id = next++;
    const history = id % 2 === 0 ? [installed(id)] : [installed(id), uninstalled(id)];
    const rest = history.slice(0, events - appended);
    appended += rest.length;
    await store.appendToStream(`installation-${id}`, rest);
  }
};
await Promise.all(Array.from({ length: APPENDS_AT_ONCE }, append));
await store.close();

const started = process.hrtime.bigint();
const consumer = rebuildPostgreSQLProjections({
  connectionString,
  projection,
  pulling: { batchSize: BATCH },
});
await consumer.start();
await consumer.close();
const seconds = Number(process.hrtime.bigint() - started) / 1e9;
console.log(JSON.stringify({ events, installations: next, seconds }));
process.exit(0);
