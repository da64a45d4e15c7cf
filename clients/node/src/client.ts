import { Credential } from './credential.js';
import { follow, listAndFollow, type Followed, type FollowOptions, type Step } from './follow.js';
import { Transport, type MooringOptions } from './transport.js';
import type {
    Cancel,
    ChangesPage,
    ChangesQuery,
    CredentialBody,
    Event,
    EventsPage,
    EventsQuery,
    GetQuery,
    Installation,
    InstallationsPage,
    ListQuery,
    PortalLaunch,
    PortalSession,
    PortalUrl,
    RelatedInstallation,
    Which,
} from './types.js';

/** What a worker of Mooring answers. Errors are a `MooringProblem` or `MooringUnreachable`. */
export class Mooring {
    readonly #transport: Transport;

    constructor(options: MooringOptions) {
        this.#transport = new Transport(options);
    }

    /** One page of installations. */
    listPage({ signal, ...query }: ListQuery & Cancel = {}): Promise<InstallationsPage> {
        return this.#transport.ask({ method: 'GET', path: '/v1/installations', query, signal });
    }

    /** All installations, page by page as they are needed. */
    async *list(query: ListQuery & Cancel = {}): AsyncGenerator<Installation, void, undefined> {
        for await (const page of this.listPages(query)) yield* page.installations;
    }

    /** All pages of installations. The change feed goes on from the `changes_cursor` of the first. */
    async *listPages(query: ListQuery & Cancel = {}): AsyncGenerator<InstallationsPage, void, undefined> {
        let cursor = query.cursor;
        do {
            const page = await this.listPage({ ...query, cursor });
            yield page;
            cursor = page.next_cursor ?? undefined;
        } while (cursor !== undefined);
    }

    /** One installation. With `wait` one that is on its way is waited for, so many seconds. */
    get(id: string, { signal, ...query }: GetQuery & Cancel = {}): Promise<RelatedInstallation> {
        return this.#transport.ask({ method: 'GET', path: pathOf(id), query, waitS: query.wait, signal });
    }

    /** One page of its events, in log order. */
    eventsPage(id: string, { signal, ...query }: EventsQuery & Cancel = {}): Promise<EventsPage> {
        return this.#transport.ask({ method: 'GET', path: `${pathOf(id)}/events`, query, signal });
    }

    /** All its events, in log order. */
    async *events(id: string, query: EventsQuery & Cancel = {}): AsyncGenerator<Event, void, undefined> {
        let after = query.after;
        do {
            const page = await this.eventsPage(id, { ...query, after });
            yield* page.events;
            after = page.next_after ?? undefined;
        } while (after !== undefined);
    }

    /** Opens its credential. Mooring records who did. */
    async credential(id: string, { signal, ...query }: Which & Cancel = {}): Promise<Credential> {
        const path = `${pathOf(id)}/credential`;
        return new Credential(await this.#transport.ask<CredentialBody>({ method: 'GET', path, query, signal }));
    }

    /** What to send to the platform now: its access token if it has one, else its key. */
    async currentKey(id: string, which: Which & Cancel = {}): Promise<string> {
        return (await this.credential(id, which)).key;
    }

    /** One page of the change feed. */
    changes({ signal, types, ...query }: ChangesQuery & Cancel = {}): Promise<ChangesPage> {
        return this.#changes({ ...query, types, signal });
    }

    #changes({ signal, types, ...query }: ChangesQuery & Cancel, retries?: number): Promise<ChangesPage> {
        return this.#transport.ask({
            method: 'GET',
            path: '/v1/changes',
            query: { ...query, type: types?.join(',') },
            waitS: query.wait,
            retries,
            signal,
        });
    }

    /** Each change after a cursor, for as long as it is read. It ends when `signal` is aborted. */
    follow(options: FollowOptions = {}): AsyncGenerator<Followed, void, undefined> {
        return follow((query) => this.#changes(query, 0), options);
    }

    /**
     * The whole list, and then each change without a hole. It begins with the list unless `after` is given, and lists again when
     * that cursor has expired.
     */
    listAndFollow(options: FollowOptions = {}): AsyncGenerator<Step, void, undefined> {
        const pages = (query: ListQuery & Cancel) => this.listPages(query);
        return listAndFollow(pages, (query) => this.#changes(query, 0), options);
    }

    /** Opens a session of the app's portal for what Blnk posted to its portal generator URL. */
    openPortalSession(launch: PortalLaunch, { signal, source }: { source?: string } & Cancel = {}): Promise<PortalUrl> {
        return this.#transport.ask({ method: 'POST', path: '/v1/portal-sessions', query: { source }, body: launch, signal });
    }

    /** Whose portal a token opens. */
    introspectPortalSession(token: string, { signal }: Cancel = {}): Promise<PortalSession> {
        const path = '/v1/portal-sessions/introspect';
        // It changes nothing, so it may be asked again.
        return this.#transport.ask({ method: 'POST', path, body: { token }, retries: 3, signal });
    }
}

function pathOf(id: string): string {
    // `.` and `..` would be resolved away, and no platform has such an id.
    if (id === '' || id === '.' || id === '..') throw new TypeError('this is no id of an installation');
    return `/v1/installations/${encodeURIComponent(id)}`;
}
