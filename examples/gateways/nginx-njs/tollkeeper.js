// Asks Tollkeeper's HTTP door before a request is passed on.

const SERVER = 'http://127.0.0.1:7443';

// What the policy says of limits that cannot be decided (`when_unavailable`), for when the daemon cannot even be asked.
const FAIL_OPEN = true;

async function check(r) {
    const attributes = { request_id: r.variables.request_id, ip: r.remoteAddress };
    // Whoever knows the caller says who it is: here a header that your authentication sets.
    if (r.headersIn['X-Team']) {
        attributes.team = r.headersIn['X-Team'];
    }
    let report;
    try {
        const reply = await ngx.fetch(SERVER + '/v1/check', {
            method: 'POST',
            headers: { 'Content-Type': 'application/json' },
            body: JSON.stringify({
                api: 'media', method: r.method, path: r.variables.request_uri, attributes: attributes,
            }),
        });
        if (reply.status !== 200) {
            throw new Error(await reply.text());
        }
        report = await reply.json();
    } catch (error) {
        r.error('tollkeeper: ' + error.message);
        report = FAIL_OPEN ? { decision: 'allow', headers: {} } : { decision: 'deny', status: 503, headers: {} };
    }
    if (report.decision === 'allow') {
        r.variables.toll_limit = report.headers['X-RateLimit-Limit'] || '';
        r.variables.toll_remaining = report.headers['X-RateLimit-Remaining'] || '';
        r.variables.toll_reset = report.headers['X-RateLimit-Reset'] || '';
        r.internalRedirect('@upstream');
        return;
    }
    for (const name in report.headers) {
        r.headersOut[name] = report.headers[name];
    }
    if (report.content_type) {
        r.headersOut['Content-Type'] = report.content_type;
    }
    r.return(report.status, report.body || '');
}

export default { check };
