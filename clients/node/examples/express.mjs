// Answers with what a platform's API says for a tenant, asked with the tenant's current key.
import express from 'express';
import { Mooring } from 'mooring-client';

const { MOORING_URL, MOORING_TOKEN, API_URL, PORT = '3000' } = process.env;
const mooring = new Mooring({ url: MOORING_URL, token: MOORING_TOKEN });
const app = express();

app.get('/tenants/:id/ledgers', async (request, response) => {
    const key = await mooring.currentKey(request.params.id);
    const answer = await fetch(`${API_URL}/ledgers`, { headers: { authorization: `Bearer ${key}` } });
    response.status(answer.status).json(await answer.json());
});

// Express would answer with the status that Mooring answered us with.
app.use((error, request, response, next) => {
    console.error(error);
    response.status(error.code === 'no-credential' ? 404 : 502).end();
});

app.listen(Number(PORT), '127.0.0.1', () => console.log('ready'));
