import { SessionStorage, UserType, type ISessionData } from '@gohighlevel/api-client';
import type { Mooring } from './client.js';
import type { Credential } from './credential.js';
import { MooringProblem } from './errors.js';

export interface HighLevelOptions {
    /** The name of the source in Mooring. */
    source: string;
    /** The app's id. Without it what precedes the first `-` of the client id that the SDK is given. */
    appId?: string;
}

/** How the parts of an installation id are named, by whose session it is. */
const KINDS = [
    { kind: 'location', userType: UserType.Location, idField: 'locationId' },
    { kind: 'company', userType: UserType.Company, idField: 'companyId' },
] as const;

/** Somebody meant to keep tokens in the storage. */
export class NotStored extends Error {
    override readonly name = 'NotStored';
}

/**
 * Sessions of HighLevel's SDK, as Mooring has them. It writes nothing, and gives no refresh token out: if the SDK renewed a
 * token, the refresh token that Mooring holds would be spent.
 *
 * The SDK asks for the session before each request, and again after a 401. If Mooring has renewed the token meanwhile, the SDK
 * sends the request once more.
 */
export class MooringSessionStorage extends SessionStorage {
    readonly #mooring: Mooring;
    readonly #source: string;
    #appId: string | undefined;

    constructor(mooring: Mooring, { source, appId }: HighLevelOptions) {
        super();
        this.#mooring = mooring;
        this.#source = source;
        this.#appId = appId;
    }

    /** The SDK calls it with its client id. */
    setClientId(clientId: string): void {
        this.#appId ??= clientId.split('-')[0];
    }

    /** `resourceId` is the id of a location or a company. */
    async getSession(resourceId: string): Promise<ISessionData | null> {
        for (const { kind, userType, idField } of KINDS) {
            const credential = await this.#open(kind, resourceId);
            if (credential === 'unknown') continue;
            if (credential === 'none') return null;
            // Without `expire_at`. With one the SDK takes a token in its last 30 s for a bad one, and after a 401 would rather
            // renew it, which it cannot, than use it.
            return { access_token: credential.key, token_type: 'Bearer', userType, [idField]: resourceId };
        }
        return null;
    }

    async getAccessToken(resourceId: string): Promise<string | null> {
        return (await this.getSession(resourceId))?.access_token ?? null;
    }

    async getRefreshToken(): Promise<null> {
        return null;
    }

    /**
     * The SDK calls it by itself when its webhook middleware has seen an INSTALL and exchanged an agency's token for a
     * location's. Mooring does that, too, so nothing is lost. Such tokens have no refresh token. Those of a user's grant have
     * one: the app has exchanged the code itself, and would lose it.
     */
    async setSession(_resourceId: string, session: ISessionData): Promise<void> {
        if (!session.refresh_token) return;
        throw new NotStored(
            `nothing is stored here: send users to Mooring's /oauth/${this.#source}/authorize, whose callback takes the grant`,
        );
    }

    /** The SDK calls it by itself at an UNINSTALL. Mooring hears of that from HighLevel, and ends the session. */
    async deleteSession(): Promise<void> {}

    async init(): Promise<void> {}

    async disconnect(): Promise<void> {}

    async createCollection(): Promise<void> {}

    async getCollection(): Promise<null> {
        return null;
    }

    async #open(kind: string, resourceId: string): Promise<Credential | 'unknown' | 'none'> {
        if (!this.#appId) throw new Error('give the storage an appId, or the SDK a clientId');
        const id = [this.#appId, kind, resourceId].map(encodePart).join(':');
        try {
            return await this.#mooring.credential(id, { source: this.#source });
        } catch (error) {
            const code = error instanceof MooringProblem ? error.code : '';
            if (code === 'installation-not-found') return 'unknown';
            if (code === 'no-credential') return 'none';
            throw error;
        }
    }
}

/** As Mooring writes a part of an id. */
function encodePart(part: string): string {
    return part.replace(/[%:]/g, (character) => (character === '%' ? '%25' : '%3A'));
}
