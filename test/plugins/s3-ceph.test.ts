// The S3 target on a real store, Ceph's radosgw: the conformance suite, TLS, both ways to address a bucket, what the store says of wrong
// settings, what a bucket's policy allows, versions and locks.

import { readFileSync, writeFileSync } from 'node:fs'
import type { LookupFunction } from 'node:net'
import t from 'tap'
import { S3Client } from '../../plugins/s3/client.ts'
import { NotThere, openTarget } from '../../src/push/target.ts'
import { addPassphrase } from '../../src/repository/key-slots.ts'
import { probe } from '../../src/repository/probe.ts'
import { initRepository, readRepositoryFile } from '../../src/repository/repository-file.ts'
import { Repository } from '../../src/repository/repository.ts'
import { Ceph, cephMissing } from '../helpers/ceph.ts'
import { CliWorker } from '../helpers/cli-worker.ts'
import { makePki } from '../helpers/pki.ts'
import { CHEAP, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { makeBucket, openS3, optionsFor, settingsFor, silent } from '../helpers/s3.ts'
import { listed, targetSuite } from '../helpers/target-suite.ts'
import { missing } from '../helpers/tools.ts'

const skip = cephMissing || missing('openssl')
if (skip) t.plan(0, skip)
else await onCeph()

const toLoopback: LookupFunction = (_name, options, done) => {
  if (options.all) done(null, [{ address: '127.0.0.1', family: 4 }])
  else done(null, '127.0.0.1', 4)
}

async function onCeph() {
  const pki = await makePki(`${t.testdir()}/pki`)
  const tlsPem = `${pki}/store.pem`
  writeFileSync(tlsPem, readFileSync(`${pki}/server-key.pem`, 'utf8') + readFileSync(`${pki}/server-cert.pem`, 'utf8'))
  const ceph = await Ceph.launch({ tlsPem })
  t.teardown(() => ceph[Symbol.asyncDispose]())
  await makeBucket(ceph.endpoint, 'suite')
  targetSuite(t, 's3 on Ceph', async stack => stack.use(await openS3(ceph.endpoint, 'suite', { prefix: 'a prefix/' })), {
    many: 1100,
  })

  t.test('the store keeps its conditions, and the target finds out in which form', async t => {
    await using target = await openS3(ceph.endpoint, 'suite')
    t.same(await probe(target), { cas: true })
  })

  t.test('the plugin opens it as the configuration names it, and it is what the suite was on', async t => {
    await using target = await openTarget({ plugin: 's3', ...settingsFor(ceph.endpoint, 'suite') }, { log: silent })
    t.equal(target.location, `${ceph.endpoint}/suite/`)
    await target.put('named', Buffer.from('x'), { ifAbsent: true })
    await using below = await openS3(ceph.endpoint, 'suite', { prefix: 'na' })
    t.same(await listed(below, ''), [], 'a prefix ends with a "/"')
    await target.delete(['named'])
  })

  t.test('TLS with an authority of one’s own works where it is named, and with no other', async t => {
    const ca = `${pki}/ca-cert.pem`
    await using target = await openS3(ceph.tlsEndpoint, 'suite', { ca })
    await target.put('tls', Buffer.from('x'), { ifAbsent: true })
    t.equal(String((await target.get('tls')).body), 'x')
    await target.delete(['tls'])
    const sentence = /its certificate is not accepted.*name that authority's certificate with ca: FILE/
    await t.rejects(openS3(ceph.tlsEndpoint, 'suite'), { name: 'Untrusted', message: sentence })
    const other = await makePki(`${t.testdir()}/other`)
    await t.rejects(openS3(ceph.tlsEndpoint, 'suite', { ca: `${other}/ca-cert.pem` }), { name: 'Untrusted', message: sentence })
    const elsewhere = ceph.tlsEndpoint.replace('localhost', 'other.example')
    await t.rejects(openS3(elsewhere, 'suite', { ca }, { connect: { lookup: toLoopback } }), { name: 'Untrusted' })
    await t.rejects(openS3(ceph.endpoint.replace('http:', 'https:'), 'suite', { ca }), {
      name: 'Untrusted',
      message: /does this port speak plain http/,
    })
    await t.rejects(openS3(ceph.tlsEndpoint, 'suite', { ca: '/no/such/file' }), {
      name: 'BadSettings',
      message: /^ca: .*No such file/,
    })
  })

  t.test('a bucket can be part of the host’s name', async t => {
    const names: string[] = []
    const lookup: LookupFunction = (name, ...rest) => {
      names.push(name)
      toLoopback(name, ...rest)
    }
    const endpoint = ceph.endpoint.replace('127.0.0.1', 'localhost')
    await using target = await openS3(endpoint, 'suite', { addressing: 'virtual' }, { connect: { lookup } })
    await target.put('odd key +%20/ü', Buffer.from('virtual'))
    await using plain = await openS3(ceph.endpoint, 'suite')
    t.equal(String((await plain.get('odd key +%20/ü')).body), 'virtual')
    await target.delete(['odd key +%20/ü'])
    t.equal(names[0], 'suite.localhost')
  })

  t.test('the store’s own word on a wrong key, secret or bucket becomes a sentence that says what to do', async t => {
    process.env['WRONG_SECRET'] = 'wrong'
    const { endpoint } = ceph
    await t.rejects(openS3(endpoint, 'suite', { 'access-key': 'NOBODY' }), { name: 'WrongAccessKey', message: /'NOBODY'/ })
    await t.rejects(openS3(endpoint, 'suite', { 'secret-key': 'env:WRONG_SECRET' }), { name: 'WrongSecretKey' })
    await t.rejects(openS3(endpoint, 'no-such-bucket'), {
      name: 'NoBucket',
      message: /there is no bucket 'no-such-bucket'; create it/,
    })
    const hour = 3_600_000
    await using early = await openS3(endpoint, 'suite', {}, { now: () => Date.now() - hour })
    await early.put('by a wrong clock', Buffer.from('x'))
    await using late = await openS3(endpoint, 'suite', {}, { now: () => Date.now() + hour })
    t.equal(String((await late.get('by a wrong clock')).body), 'x')
    await late.delete(['by a wrong clock'])
  })

  t.test('the policy of docs/s3.md allows what a repository does, and no more', async t => {
    await makeBucket(ceph.endpoint, 'policies')
    await ceph.addUser('backup', 'BACKUPKEY', 'backup secret')
    process.env['BACKUP_SECRET'] = 'backup secret'
    const backup = { 'access-key': 'BACKUPKEY', 'secret-key': 'env:BACKUP_SECRET' }
    await t.rejects(openS3(ceph.endpoint, 'policies', backup), { name: 'Denied', message: /access key 'BACKUPKEY' may not list/ })
    const [, policy = ''] =
      /```json\n([^]*?)```/.exec(readFileSync(new URL('../../../docs/s3.md', import.meta.url), 'utf8')) ?? []
    const setPolicy = async (actions: (all: string[]) => string[]) => {
      const parsed = JSON.parse(policy.replaceAll('vm-backup', 'policies')) as {
        Statement: { Action: string[]; Principal: unknown }[]
      }
      for (const statement of parsed.Statement) {
        statement.Principal = { AWS: ['arn:aws:iam:::user/backup'] }
        statement.Action = actions(statement.Action)
      }
      parsed.Statement = parsed.Statement.filter(({ Action }) => Action.length > 0)
      await using client = await S3Client.create(optionsFor(ceph.endpoint, 'policies'), silent)
      const body = Buffer.from(JSON.stringify(parsed))
      const { createHash } = await import('node:crypto')
      const sha256 = createHash('sha256').update(body).digest('hex')
      const reply = await client.call({ method: 'PUT', what: 'set the policy', query: { policy: '' }, body, sha256 })
      if (reply.refusal) throw client.fault(reply, 'set the policy')
    }
    await setPolicy(all => all)
    await using target = await openS3(ceph.endpoint, 'policies', backup)
    t.same(await probe(target), { cas: true })
    await target.put('site/x', Buffer.from('x'))
    await target.delete(['site/x', 'a', 'b', 'c'])
    await t.rejects(target.get('site/x'), NotThere)
    await target.put('kept', Buffer.from('x'))
    await setPolicy(all => all.filter(action => !/Put|Delete/.test(action)))
    await using reader = await openS3(ceph.endpoint, 'policies', backup)
    t.equal(String((await reader.get('kept')).body), 'x', 'who may only read reads')
    await t.rejects(reader.put('x', Buffer.from('x')), {
      name: 'Denied',
      message: /may not write 'x'; docs\/s3.md has the policy/,
    })
    await t.rejects(reader.put('x', Buffer.from('x'), { ifAbsent: true }), { name: 'Denied' })
    await t.rejects(reader.delete(['kept']), { name: 'Denied' })
    await t.rejects(reader.delete(['kept', 'a', 'b']), { name: 'Denied' })
    t.equal(String((await reader.get('kept')).body), 'x')
  })

  t.test('keys, copies, exports and imports are there as they are in a folder', async t => {
    await makeBucket(ceph.endpoint, 'site')
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    writeFileSync(`${folder}/key`, 'correct horse\n')
    const at = (prefix: string) => ({ plugin: 's3', ...settingsFor(ceph.endpoint, 'site', { prefix }) })
    const encryption = { key: `file:${folder}/key` }
    const repositories = { open: at('open'), safe: { ...at('safe'), encryption }, again: { ...at('again'), encryption } }
    const config = `${folder}/stillpoint.yaml`
    writeFileSync(config, JSON.stringify({ repositories }))
    const worker = stack.use(new CliWorker())
    const call = (args: string) => worker.run(...args.split(' '), '--config', config)
    const cheap = { cost: CHEAP, chunkSize: 65_536 }
    const [open, safe, again] = await Promise.all(
      Object.keys(repositories).map(async prefix => stack.use(await openS3(ceph.endpoint, 'site', { prefix }))),
    )
    await initRepository(open!, cheap)
    for (const target of [safe!, again!]) await initRepository(target, { ...cheap, passphrase: 'correct horse' })

    const file = await readRepositoryFile(safe!)
    const slot = await addPassphrase({ target: safe!, file, passphrase: 'correct horse' }, 'x', {
      cost: CHEAP,
      label: 'in the safe',
    })
    t.match(await call('repo key list safe'), { code: 0, stdout: /yes +-\n.* no +in the safe\n$/ })
    t.match(await call(`repo key remove safe ${slot.replace('keys/', '')}`), { code: 0, stdout: /removed/ })

    const bytes = diskContent(30 * 65_536, 1)
    const { key } = await pushDisks(await Repository.open(open!), [{ name: 'root', source: sourceOf(bytes) }])
    const point = key.replace('points/', '')
    t.match(await call('point copy open vm/latest safe'), { code: 0, stdout: /copied to safe/ })
    t.match(await call('point copy open vm/latest safe'), { code: 0, stdout: `${point}: safe has it already\n` })
    t.match(await call(`repo export safe vm/latest ${folder}/vm.zip`), { code: 0 })
    t.match(await call(`repo import ${folder}/vm.zip again`), { code: 0 })
    t.match(await call('repo check again --level deep'), { code: 0, stdout: /all is well/ })
    t.match(await call(`restore again ${point} root ${folder}/root.raw`), { code: 0 })
    t.ok(readFileSync(`${folder}/root.raw`).equals(bytes))
  })

  t.test('what is locked stays, whatever is deleted', async t => {
    await makeBucket(ceph.endpoint, 'locked', { 'x-amz-bucket-object-lock-enabled': 'true' })
    await using target = await openS3(ceph.endpoint, 'locked')
    const until = new Date(Date.now() + 3_600_000)
    const { tag } = await target.put('pack', Buffer.from('to be kept'), { lockUntil: until })
    await using client = await S3Client.create(optionsFor(ceph.endpoint, 'locked'), silent)
    const head = await client.call({ method: 'HEAD', what: 'look', key: 'pack' })
    const kept = Date.parse(String(head.headers['x-amz-object-lock-retain-until-date']))
    t.ok(Math.abs(kept - until.getTime()) < 1000, 'until then')
    const versionId = String(head.headers['x-amz-version-id'])
    const purge = await client.call({ method: 'DELETE', what: 'purge', key: 'pack', query: { versionId } })
    t.equal(purge.refusal?.code, 'AccessDenied')
    await target.delete(['pack'])
    await t.rejects(target.get('pack'), NotThere, 'it is only hidden')
    const old = await client.call({ method: 'GET', what: 'read', key: 'pack', query: { versionId } })
    t.equal(String(old.body), 'to be kept')
    t.ok(tag)
    t.match(
      await probe(target),
      { cas: false, why: /ignores it/ },
      'Ceph keeps no conditions where there are versions, and we notice',
    )
    await using without = await openS3(ceph.endpoint, 'suite')
    await t.rejects(without.put('x', Buffer.alloc(1), { lockUntil: until }), {
      name: 'NotSupported',
      message: /has no object lock/,
    })
  })
}
