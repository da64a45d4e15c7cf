import type { Installation, InstallationQuery, InstallationStore } from '@slack/oauth';
import type { Mooring } from './client.js';

type Found = Installation<'v2', false>;

export interface SlackOptions {
    /** The name of the source in Mooring. */
    source: string;
    /**
     * Adds what Mooring does not have, such as the ids of the bot by Slack's `auth.test`. It is called each time that an
     * installation is fetched.
     */
    complete?: (installation: Found) => Found | Promise<Found>;
}

/** Slack's SDK asked for what Mooring does in its place, or does not do. */
export class NotHere extends Error {
    override readonly name = 'NotHere';
}

/** The SDK's types ask for ids that Mooring does not have. Absent they fail where they are needed; made up they would not. */
const UNKNOWN = undefined as unknown as string;

/** Installations for Slack's SDK, as Mooring has them: the bot's token, and neither a refresh token nor the token of a user. */
export class MooringInstallationStore implements InstallationStore {
    readonly #mooring: Mooring;
    readonly #source: string;
    readonly #complete: (installation: Found) => Found | Promise<Found>;

    constructor(mooring: Mooring, { source, complete = (installation) => installation }: SlackOptions) {
        this.#mooring = mooring;
        this.#source = source;
        this.#complete = complete;
    }

    async fetchInstallation(query: InstallationQuery<boolean>): Promise<Installation<'v1' | 'v2', boolean>> {
        const { teamId } = query;
        if (query.isEnterpriseInstall || !teamId) {
            throw new NotHere('Mooring has installations of workspaces, and none of whole organizations');
        }
        const which = { source: this.#source };
        const [installation, credential] = await Promise.all([
            this.#mooring.get(teamId, which),
            this.#mooring.credential(teamId, which),
        ]);
        // Without a refresh token the SDK renews nothing. Mooring does.
        return this.#complete({
            team: { id: teamId },
            enterprise: undefined,
            user: { id: UNKNOWN, token: undefined, scopes: undefined },
            bot: { id: UNKNOWN, userId: UNKNOWN, token: credential.key, scopes: installation.granted_permissions },
            appId: installation.app_id,
            tokenType: 'bot',
            isEnterpriseInstall: false,
            authVersion: 'v2',
        });
    }

    /** The SDK calls it with what its own OAuth brought, which would be lost. */
    async storeInstallation(): Promise<void> {
        throw new NotHere(
            `nothing is stored here: send users to Mooring's /oauth/${this.#source}/authorize, whose callback takes the grant`,
        );
    }

    /** Apps call it when Slack tells of an uninstall. Mooring hears of that from Slack, and ends the installation. */
    async deleteInstallation(): Promise<void> {}
}
