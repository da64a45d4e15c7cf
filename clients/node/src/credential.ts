import type { CredentialBody } from './types.js';

const REDACTED = '[redacted]';

/** An opened credential. No log, no JSON and no inspection shows its secret. */
export class Credential {
    readonly source: string;
    readonly installationId: string;
    /** When the access token ends, if it does. */
    readonly expiresAt: Date | null;
    readonly #secret: string;

    constructor(body: CredentialBody) {
        this.source = body.source;
        this.installationId = body.installation_id;
        this.expiresAt = body.expires_at === null ? null : new Date(body.expires_at);
        this.#secret = body.credential;
    }

    /** As Mooring answered it: the key of the platform, or a JSON object. */
    get secret(): string {
        return this.#secret;
    }

    /** What to send to the platform: the access token if there is one, else the whole secret. */
    get key(): string {
        return this.accessToken ?? this.#secret;
    }

    get accessToken(): string | undefined {
        return this.#text('access_token');
    }

    /** Only if the caller's token has the scope for it. */
    get refreshToken(): string | undefined {
        return this.#text('refresh_token');
    }

    /** Of a secret that is a JSON object: its fields. */
    get fields(): Record<string, unknown> | undefined {
        try {
            const value: unknown = JSON.parse(this.#secret);
            const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
            return isObject ? (value as Record<string, unknown>) : undefined;
        } catch {
            return undefined;
        }
    }

    #text(name: string): string | undefined {
        const value = this.fields?.[name];
        return typeof value === 'string' ? value : undefined;
    }

    toString(): string {
        return `Credential(${this.source}, ${this.installationId}, ${REDACTED})`;
    }

    toJSON(): Record<string, unknown> {
        const { source, installationId, expiresAt } = this;
        return { source, installationId, expiresAt, secret: REDACTED };
    }

    [Symbol.for('nodejs.util.inspect.custom')](): string {
        return this.toString();
    }
}
