// TLS, rule by rule: when it is wanted, what it hides, whom it lets in; and other people's clients over it.

import { once } from 'node:events'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import tls from 'node:tls'
import { Command, Option } from 'nbd-client-ts/protocol'
import t from 'tap'
import { TlsCredentials } from '../../src/base/tls-credentials.ts'
import type { Export } from '../../src/nbd-server/export.ts'
import type { Peer } from '../../src/nbd-server/link.ts'
import { MemoryNode } from '../helpers/memory-node.ts'
import { converse, flags, go, goData, option, queries, RawPeer, Reader, request } from '../helpers/nbd-wire.ts'
import { makePki, revoke, stranger } from '../helpers/pki.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { exportOf, quiet, serve } from '../helpers/served.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const skip = missing('openssl')
const FIXED = flags(3)
const LIST = option(Option.LIST)
const STARTTLS = option(Option.STARTTLS)
const STRUCTURED = option(Option.STRUCTURED_REPLY)

const bytes = randomBytes(3 << 20, 1)
const exportsOf = (): Export[] => {
  const node = new MemoryNode(Buffer.from(bytes))
  return [exportOf(node, { name: 'disk', contexts: [] }), exportOf(node, { name: 'secret', tlsOnly: true, contexts: [] })]
}

/** Folders of keys and certificates, made once. */
const pki = skip ? '' : await makePki(join(t.testdir(), 'pki'))
const strange = skip ? '' : await stranger(join(t.testdirName, 'strange'), pki)
const KEY = 'e9e1f0c1bbd1d0a9'.repeat(4)

async function psk(folder: string) {
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'keys.psk'), `# users\nalice:${KEY}\nbob:${KEY.replaceAll('e', 'a')}\n`)
  return folder
}

/** The stream after STARTTLS, as a client of ours that proves itself by a certificate. */
async function secured(peer: RawPeer, { credentials = pki, before = [] as Buffer[] } = {}) {
  await peer.send(FIXED, ...before)
  await peer.upTo(18 + 20 * before.length)
  await peer.send(STARTTLS)
  await peer.upTo(18 + 20 * before.length + 20)
  peer.socket.removeAllListeners('data')
  const read = (name: string) => readFile(join(credentials, name))
  const [ca, cert, key] = await Promise.all(['ca-cert.pem', 'client-cert.pem', 'client-key.pem'].map(read))
  const socket = tls.connect({ socket: peer.socket, ca, cert, key, servername: 'localhost' })
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  socket.on('error', error => t.comment(error.message)) // whoever is not let in is cut off
  const closed = once(socket, 'close')
  await Promise.race([once(socket, 'secureConnect'), closed])
  /** Sends it all, and reads until the server is through. */
  return async (...parts: Buffer[]) => {
    socket.end(Buffer.concat(parts))
    await closed
    return new Reader(Buffer.concat(chunks))
  }
}

t.test('where TLS is forced nothing goes without it but STARTTLS and ABORT', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials } })
  const options = [
    LIST,
    STRUCTURED,
    option(Option.INFO, goData('disk')),
    go('disk'),
    option(Option.LIST_META_CONTEXT, queries('disk')),
    option(77),
  ]
  const reader = await converse(served.socket, FIXED, ...options, option(Option.STARTTLS, Buffer.from('x')), option(Option.ABORT))
  reader.greeting()
  t.match(
    reader.optionAnswers().map(({ option, type }) => `${option} ${type}`),
    [
      ...['LIST', 'STRUCTURED_REPLY', 'INFO', 'GO', 'LIST_META_CONTEXT', '0x4d'].map(name => `${name} ERR_TLS_REQD`),
      'STARTTLS ERR_INVALID',
      'ABORT ACK',
    ],
  )
  const byName = await converse(served.socket, FIXED, option(Option.EXPORT_NAME, Buffer.from('disk')))
  byName.greeting()
  t.equal(byName.left, 0)
  await quiet(served)
})

t.test('after STARTTLS all that was agreed on before is forgotten, and it is up once only', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'selective', credentials } })
  await using peer = await RawPeer.connect(served.socket)
  const talk = await secured(peer, { before: [STRUCTURED] })
  const reader = await talk(
    STARTTLS,
    option(Option.SET_META_CONTEXT, queries('disk', 'base:')),
    LIST,
    go('secret'),
    request({ type: Command.READ, length: 5 }),
  )
  const answers = ['STARTTLS ERR_INVALID', 'SET_META_CONTEXT ERR_INVALID', 'LIST SERVER', 'LIST SERVER', 'LIST ACK']
  t.same(
    reader.optionAnswers().map(({ option, type }) => `${option} ${type}`),
    [...answers, 'GO INFO', 'GO INFO', 'GO ACK'],
  )
  t.match(
    reader.answers(() => 5),
    [{ kind: 'simple', data: bytes.subarray(0, 5) }],
  )
  await quiet(served)
})

t.test('where TLS is selective, what is for TLS only is neither listed nor told from what is not there', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'selective', credentials } })
  const reader = await converse(
    served.socket,
    FIXED,
    LIST,
    ...['secret', 'none', 'disk'].map(name => option(Option.INFO, goData(name))),
    go('secret'),
  )
  reader.greeting()
  t.match(
    reader.optionAnswers().map(({ option, type, text }) => `${option} ${type} ${text?.replace(/'.*'/, "''")}`),
    [
      'LIST SERVER undefined',
      'LIST ACK undefined',
      "INFO ERR_TLS_REQD export '' needs TLS, if it is here: STARTTLS",
      "INFO ERR_TLS_REQD export '' needs TLS, if it is here: STARTTLS",
      'INFO INFO undefined',
      'INFO INFO undefined',
      'INFO ACK undefined',
      "GO ERR_TLS_REQD export '' needs TLS, if it is here: STARTTLS",
    ],
  )
  for (const name of ['secret', 'none']) {
    const byName = await converse(served.socket, FIXED, option(Option.EXPORT_NAME, Buffer.from(name)))
    byName.greeting()
    t.equal(byName.left, 0)
  }
})

t.test('what is sent in the clear behind STARTTLS is not executed', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'selective', credentials } })
  const reader = await converse(served.socket, FIXED, STARTTLS, LIST)
  reader.greeting()
  t.equal(reader.left, 0, 'in the same segment')
  await using peer = await RawPeer.connect(served.socket)
  await peer.send(FIXED, STARTTLS)
  await peer.upTo(18 + 20)
  await peer.send(LIST, Buffer.alloc(1000))
  const later = new Reader(await peer.rest())
  later.greeting()
  t.match(later.optionAnswer(), { option: 'STARTTLS', type: 'ACK' })
  t.notMatch(later.take(later.left).toString('latin1'), /disk/)
  await quiet(served)
  t.same(served.lines, [])
})

t.test('what is no TLS any more ends the connection, in the negotiation and behind it', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials: await TlsCredentials.x509(pki) } })
  const read = (name: string) => readFile(join(pki, name))
  const [ca, cert, key] = await Promise.all(['ca-cert.pem', 'client-cert.pem', 'client-key.pem'].map(read))
  for (const chosen of [[], [go('disk')]])
    for (const record of ['1703030020' + '7a'.repeat(32), '15030300020228', '00'.repeat(64)]) {
      await using peer = await RawPeer.connect(served.socket)
      await peer.send(FIXED, STARTTLS)
      await peer.upTo(18 + 20)
      peer.socket.removeAllListeners('data')
      // Its own socket stays open, whatever becomes of its TLS.
      const beside = new Duplex({ read() {}, write: (chunk: Buffer, _encoding, done) => peer.socket.write(chunk, done) })
      peer.socket.on('data', chunk => beside.push(chunk))
      const socket = tls.connect({ socket: beside, ca, cert, key, servername: 'localhost' })
      socket.on('error', error => t.comment(error.message))
      await once(socket, 'secureConnect')
      socket.write(Buffer.concat([STRUCTURED, ...chosen]))
      await once(socket, 'data')
      const ended = once(peer.socket, 'end', { signal: AbortSignal.timeout(5000) })
      peer.socket.write(Buffer.from(record, 'hex'))
      await ended
    }
  await quiet(served)
  t.same(served.lines, [])
})

t.test('a refused write over TLS keeps the stream in step, and large ones arrive as they are', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials } })
  await using peer = await RawPeer.connect(served.socket)
  const talk = await secured(peer)
  const data = randomBytes(1 << 20, 9)
  const reader = await talk(
    go('disk'),
    request({ type: Command.WRITE, cookie: 1n, offset: bytes.length, payload: data }),
    request({ type: Command.WRITE, cookie: 2n, offset: 1000, payload: data }),
    request({ type: Command.DISC }),
  )
  reader.optionAnswers()
  t.match(reader.answers(), [
    { cookie: 1n, error: 'ENOSPC' },
    { cookie: 2n, error: undefined },
  ])
  await quiet(served)
})

t.test('a client whose certificate another authority has signed, or that has none, is not let in', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials: await TlsCredentials.x509(pki) } })
  await using peer = await RawPeer.connect(served.socket)
  const talk = await secured(peer, { credentials: strange })
  t.equal((await talk(LIST)).left, 0)
  await quiet(served)

  const open = await serve(exportsOf(), stack, {
    tls: { mode: 'forced', credentials: await TlsCredentials.x509(pki, { verifyPeer: false }) },
  })
  await using other = await RawPeer.connect(open.socket)
  t.ok((await (await secured(other, { credentials: strange }))(LIST)).left > 0, 'but is where nobody asks for one')
})

t.test('a certificate that was taken back does not let in any more, and who is connected stays', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await makePki(join(t.testdir(), 'taken-back'))
  const credentials = await TlsCredentials.x509(folder)
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials } })
  const connected = async () => secured(stack.use(await RawPeer.connect(served.socket)), { credentials: folder })
  const before = await connected()
  await revoke(folder, 'server') // some certificate, and not this client's
  await credentials.reload()
  t.ok((await (await connected())(LIST)).left > 0, 'another one is none of its business')
  await revoke(folder, 'client')
  t.ok((await (await connected())(LIST)).left > 0, 'until it is read again')
  await credentials.reload()
  t.equal((await (await connected())(LIST)).left, 0)
  t.ok((await before(LIST)).left > 0, 'who is connected stays')
  await quiet(served)
  t.same(served.lines, [])
})

t.test('TLS 1.0 and 1.1 are refused, and the server says so', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const served = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials: await TlsCredentials.x509(pki) } })
  const read = (name: string) => readFile(join(pki, name))
  const [ca, cert, key] = await Promise.all(['ca-cert.pem', 'client-cert.pem', 'client-key.pem'].map(read))
  for (const version of ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'] as const) {
    await using peer = await RawPeer.connect(served.socket)
    await peer.send(FIXED, STARTTLS)
    await peer.upTo(18 + 20)
    peer.socket.removeAllListeners('data')
    const old = { minVersion: version, maxVersion: version, ciphers: 'ALL:@SECLEVEL=0' } // which clients of today have to be told
    const socket = tls.connect({ socket: peer.socket, ca, cert, key, servername: 'localhost', ...old })
    const outcome = await new Promise<string>(resolve => {
      socket.once('secureConnect', () => resolve(`${socket.getProtocol()}`))
      socket.once('error', (error: NodeJS.ErrnoException) => resolve(`${error.code}`))
    })
    const isOld = version === 'TLSv1' || version === 'TLSv1.1'
    t.equal(outcome, isOld ? 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION' : version, version)
    socket.destroy()
  }
  await quiet(served)
})

t.test('who a client is decides what it sees', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const seen: Peer[] = []
  const authorize = (peer: Peer, { name }: Export) => {
    seen.push(peer)
    return name === 'disk' || peer.tls?.certificate?.commonName === 'backup'
  }
  const credentials = await TlsCredentials.x509(pki)
  const served = await serve(exportsOf(), stack, { authorize, tls: { mode: 'selective', credentials } })
  await using peer = await RawPeer.connect(served.socket)
  const reader = await (await secured(peer))(LIST)
  t.equal(reader.optionAnswers().length, 3)
  t.match(seen.at(-1), { address: 'unix', tls: { certificate: { subject: 'O=Example,CN=backup', commonName: 'backup' } } })
})

t.test('credentials are read again for connections to come, and wrong ones are not taken', { skip }, async t => {
  const folder = await psk(join(t.testdir(), 'psk'))
  const credentials = await TlsCredentials.psk(folder)
  await writeFile(join(folder, 'keys.psk'), 'nonsense\n')
  await t.rejects(credentials.reload(), { name: 'InvalidParameter', message: /keys.psk:1 is not USER:KEY/ })
  await t.rejects(TlsCredentials.psk('/nowhere'), {
    message: 'Unable to access credentials /nowhere/keys.psk: No such file or directory',
  })
  await t.rejects(TlsCredentials.x509('/nowhere'), {
    message: /^Unable to access credentials \/nowhere\/ca-cert.pem: No such file/,
  })
  await writeFile(join(folder, 'ca-cert.pem'), 'x')
  await writeFile(join(folder, 'server-cert.pem'), 'x')
  await writeFile(join(folder, 'server-key.pem'), 'x')
  await t.rejects(TlsCredentials.x509(folder), { message: /cannot be used/ })
})

t.test(
  'libnbd and qemu connect by certificate and by shared key',
  { skip: skip || missing('nbdinfo', 'nbdcopy', 'qemu-img') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const x509 = await serve(exportsOf(), stack, { tls: { mode: 'forced', credentials: await TlsCredentials.x509(pki) } })
    const keys = await psk(join(t.testdir(), 'psk'))
    const credentials = await TlsCredentials.psk(keys)
    const users: (string | undefined)[] = []
    const shared = await serve(exportsOf(), stack, {
      tls: { mode: 'forced', credentials },
      authorize: ({ tls }) => users.push(tls?.user) > 0,
    })
    const copy = join(x509.folder, 'copy')

    const byCertificate = `nbds+unix:///disk?socket=${x509.socket}&tls-certificates=${pki}`
    const byKey = `nbds+unix://bob@/disk?socket=${shared.socket}&tls-psk-file=${join(keys, 'keys.psk')}`
    for (const uri of [byCertificate, byKey]) {
      t.match(await run('nbdinfo', [uri]), /protocol: newstyle-fixed with TLS/)
      await run('nbdcopy', [uri, copy])
      t.ok(bytes.equals(await readFile(copy)))
      await run('nbdcopy', [copy, uri])
    }
    t.same([...new Set(users)], ['bob'])
    for (const uri of [byCertificate.replace(pki, strange), byKey.replace('bob@', 'mallory@')])
      t.not((await attempt('nbdinfo', [uri])).code, 0)
    t.not((await attempt('nbdinfo', [x509.uri('disk')])).code, 0, 'nor without TLS')
    await writeFile(join(keys, 'keys.psk'), `carol:${KEY}\n`)
    t.not((await attempt('nbdinfo', [byKey.replace('bob@', 'carol@')])).code, 0, 'keys are not read by themselves')
    await credentials.reload()
    await run('nbdinfo', [byKey.replace('bob@', 'carol@')])
    await psk(keys)
    t.not((await attempt('nbdinfo', [byKey])).code, 0, 'and those that are gone do not open any more')
    await credentials.reload()

    const qemu = (object: string, socket: string) =>
      run('qemu-img', [
        'compare',
        '--object',
        object,
        '--image-opts',
        `driver=nbd,server.type=unix,server.path=${socket},export=disk,tls-creds=t,tls-hostname=localhost`,
        `driver=raw,file.driver=file,file.filename=${copy}`,
      ])
    t.match(await qemu(`tls-creds-x509,id=t,endpoint=client,dir=${pki}`, x509.socket), /identical/)
    t.match(await qemu(`tls-creds-psk,id=t,endpoint=client,dir=${keys},username=alice`, shared.socket), /identical/)
    await quiet(x509)
    await quiet(shared)
    t.same([...x509.lines, ...shared.lines], [])
  },
)
