import type { components, operations } from './openapi.js';

type Schemas = components['schemas'];
type QueryOf<Name extends keyof operations> = NonNullable<operations[Name]['parameters']['query']>;

export type Installation = Schemas['Installation'];
/** With what it is a part of, and what is a part of it. */
export type RelatedInstallation = Schemas['RelatedInstallation'];
export type InstallationsPage = Schemas['InstallationsPage'];
export type Event = Schemas['Event'];
export type EventsPage = Schemas['EventsPage'];
export type Change = Schemas['Change'];
export type ChangesPage = Schemas['ChangesPage'];
export type Candidate = Schemas['Candidate'];
export type ProblemBody = Schemas['Problem'];
export type CredentialBody = Schemas['Credential'];

/** Which of the installations that have the same id. */
export type Which = QueryOf<'openCredential'>;

export interface Cancel {
    /** Ends the request. What it was aborted with is thrown. */
    signal?: AbortSignal;
}

export type ListQuery = QueryOf<'listInstallations'>;
export type GetQuery = QueryOf<'getInstallation'>;
export type EventsQuery = QueryOf<'listEvents'>;
export type ChangesQuery = Omit<QueryOf<'followChanges'>, 'type'> & {
    /** Only changes of these types. */
    types?: readonly string[];
};

/** What Blnk posts to the portal generator URL of an app. */
export type PortalLaunch = Schemas['PortalLaunch'];
export type PortalUrl = Schemas['PortalUrl'];
/** Who launched the app, and for which installation. */
export type PortalSession = Schemas['PortalSession'];
