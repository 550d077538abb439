// Runs mailauth over the cases on stdin, one JSON object a line, and prints what it finds likewise.
'use strict';

const { authenticate } = require(`${process.argv[2]}/node_modules/mailauth`);
const readline = require('node:readline');

function failure(code) {
    const error = new Error(code);
    error.code = code;
    return error;
}

function records(zone, name) {
    if (name in zone) return zone[name];
    return Object.keys(zone).some(known => known.endsWith('.' + name)) ? {} : null;
}

function resolver(zone) {
    return async (asked, type) => {
        let name = asked.toLowerCase().replace(/\.$/, '');
        for (let hops = 0; hops < 11; hops++) {
            const found = records(zone, name);
            if (found === null) throw failure('ENOTFOUND');
            if (type in found) {
                if (found[type].includes('TIMEOUT')) throw failure('ETIMEOUT');
                return found[type];
            }
            if ('TIMEOUT' in found) throw failure('ETIMEOUT');
            if (!('CNAME' in found)) throw failure('ENODATA');
            name = found.CNAME[0].toLowerCase().replace(/\.$/, '');
        }
        throw failure('ESERVFAIL');
    };
}

async function judge(line) {
    const given = JSON.parse(line);
    const found = await authenticate(Buffer.from(given.content, 'base64'), {
        ip: given.ip,
        helo: given.helo,
        sender: given.sender,
        mta: 'mx.example.net',
        strict: true,
        disableBimi: true,
        resolver: resolver(given.zone)
    });
    const results = (found.dkim && found.dkim.results) || [];
    return {
        name: given.name,
        spf: found.spf ? found.spf.status.result : 'none',
        dkim: results.map(row => [row.signingDomain || '', row.selector || '', row.status.result, row.status.comment || '']),
        arc: found.arc ? found.arc.status.result : 'none',
        arc_why: found.arc ? found.arc.status.comment || '' : '',
        dmarc: found.dmarc ? found.dmarc.status.result : 'skipped',
        policy: (found.dmarc && found.dmarc.status.policy && found.dmarc.status.policy.dmarc) || '',
        dmarc_why: found.dmarcSkipReason || (found.dmarc && found.dmarc.status.comment) || ''
    };
}

async function main() {
    for await (const line of readline.createInterface({ input: process.stdin })) {
        let answer;
        try {
            answer = await judge(line);
        } catch (error) {
            answer = { name: JSON.parse(line).name, error: String(error) };
        }
        process.stdout.write(JSON.stringify(answer) + '\n');
    }
}

main();
