import { MooringProblem } from './errors.js';
import type { Mooring } from './client.js';
import type { Cancel, PortalLaunch, PortalSession, PortalUrl } from './types.js';

/** Blnk waits about 10 s for the URL, and our answer has to get there, too. */
const BLNK_WAITS_MS = 9_000;
/** What Blnk or a browser can do something about. Other problems are between the app and Mooring. */
const PASSED_ON = [400, 404, 409, 422];
/** Problems that mean that a token was never issued, and that its time is over. */
const NEVER_ISSUED = 'no-portal-session';
const EXPIRED = 'portal-session-expired';
const UNAVAILABLE = 503;

const NOT_STORED = { 'cache-control': 'no-store' };

/** Of every answer of the portal page, errors included. The page's URL holds the token. */
export const PORTAL_PAGE_HEADERS: Readonly<Record<string, string>> = {
    ...NOT_STORED,
    'content-security-policy': "frame-ancestors 'self' https://blnkfinance.com https://*.blnkfinance.com",
    'referrer-policy': 'no-referrer',
};

/** What to answer Blnk. */
export interface PortalAnswer {
    status: number;
    headers: Readonly<Record<string, string>>;
    /** As JSON. */
    body: PortalUrl | { error: string };
    /** For your log, if there is no URL. */
    error?: unknown;
}

/** What the portal page answers. */
export interface PortalPage {
    /** 200, 401 if the token was never issued, 410 if it has expired, 503 if Mooring cannot be asked. */
    status: number;
    headers: Readonly<Record<string, string>>;
    /** If the status is 200. */
    session: PortalSession | null;
    /** For your log, if Mooring could not be asked. */
    error?: unknown;
}

/** Answers what Blnk posts to the portal generator URL when a user launches the app. `body` is its JSON. */
export async function answerPortalLaunch(
    mooring: Mooring,
    body: unknown,
    { source }: { source?: string } = {},
): Promise<PortalAnswer> {
    try {
        const signal = AbortSignal.timeout(BLNK_WAITS_MS);
        const opened = await mooring.openPortalSession(body as PortalLaunch, { source, signal });
        return { status: 200, headers: NOT_STORED, body: opened };
    } catch (error) {
        const isPassedOn = error instanceof MooringProblem && isOfTheirs(error);
        const status = isPassedOn ? error.status : UNAVAILABLE;
        const said = isPassedOn ? error.detail : 'the portal is not available now';
        return { status, headers: NOT_STORED, body: { error: said }, error };
    }
}

/** Looks up the token in the URL of the portal page. */
export async function checkPortalToken(mooring: Mooring, token: unknown, options: Cancel = {}): Promise<PortalPage> {
    const page = (status: number, session: PortalSession | null = null, error?: unknown): PortalPage => ({
        status,
        headers: PORTAL_PAGE_HEADERS,
        session,
        ...(error !== undefined && { error }),
    });
    if (typeof token !== 'string' || token === '') return page(401);
    try {
        return page(200, await mooring.introspectPortalSession(token, options));
    } catch (error) {
        const code = error instanceof MooringProblem ? error.code : '';
        if (code === NEVER_ISSUED) return page(401);
        if (code === EXPIRED) return page(410);
        return page(UNAVAILABLE, null, error);
    }
}

/** A worker that has no such route answers 404, too. */
function isOfTheirs({ status, code }: MooringProblem): boolean {
    return PASSED_ON.includes(status) && code !== '' && code !== 'not-found';
}
