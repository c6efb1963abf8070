// TLS with nbdkit and qemu-nbd, and with peers that would have us do without.

import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { NbdClient, type TlsOptions } from '../src/index.ts'
import { Option, OptionReply } from '../src/protocol.ts'
import { bytes, handshake, hello, optionReply, play, refuse, serve, structuredAnswers } from './helpers/peer.ts'
import { makePki } from './helpers/pki.ts'
import { folder, missing, nbdkit, qemuNbd } from './helpers/servers.ts'

const skip = missing('openssl', 'nbdkit')
const skipQemu = missing('openssl', 'qemu-nbd')
const MiB = 1 << 20
const KEY = '0123456789abcdef0123456789abcdef'

const secure = (uri: string) => uri.replace(/^nbd/, 'nbds')
const rejected = (t: Tap, call: Promise<NbdClient>, wanted: Wanted) =>
  t.rejects(
    call.then(client => client.close()),
    wanted,
  )
type Tap = Pick<typeof t, 'rejects'>
interface Wanted {
  readonly name: string | RegExp
  readonly code?: string | RegExp
  readonly message?: string | RegExp
  readonly fatal?: boolean
}

async function readsAndWrites(uri: string, options: { tls?: TlsOptions; allowLocalFiles?: boolean }) {
  await using client = await NbdClient.connect(uri, options)
  const content = Buffer.alloc(3 * MiB, 'abcdefg')
  await client.write(0, content)
  const [large, small] = await Promise.all([client.read(0, 3 * MiB), client.read(4096, 7)])
  return large.equals(content) && small.equals(content.subarray(4096, 4103))
}

function serverPems(pki: string) {
  const pem = (name: string) => readFileSync(join(pki, `${name}.pem`))
  return { ca: pem('ca-cert'), cert: pem('server-cert'), key: pem('server-key') }
}

t.test('certificates: nbdkit is believed when it is who it should be, in TLS 1.2 and 1.3', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const server = await nbdkit(stack, '--tls=require', `--tls-certificates=${pki}`, 'memory', '8M')
  const uri = secure(server.uri())
  const ca = readFileSync(join(pki, 'ca-cert.pem'))
  const serverName = 'server.test'
  for (const maxVersion of ['TLSv1.2', 'TLSv1.3'] as const)
    t.ok(await readsAndWrites(uri, { tls: { ca, serverName, connectionOptions: { maxVersion } } }), maxVersion)
  t.ok(
    await readsAndWrites(secure(server.uri('', `tls-certificates=${pki}&tls-hostname=server.test`)), { allowLocalFiles: true }),
    'by URI',
  )
  t.ok(await readsAndWrites(secure(server.uri('', 'tls-verify-peer=0')), {}), 'anybody, when that is said in words')

  await rejected(t, NbdClient.connect(uri, { tls: { ca, serverName: 'other.test' } }), {
    name: 'NbdTlsError',
    code: 'ERR_TLS_CERT_ALTNAME_INVALID',
  })
  await rejected(t, NbdClient.connect(uri, { tls: { serverName } }), { name: 'NbdTlsError', code: /SELF_SIGNED|UNABLE_TO/ })
  await rejected(t, NbdClient.connect(uri, { tls: { ca } }), { name: 'NbdUsageError', message: /no host name to verify/ })
  await rejected(t, NbdClient.connect(secure(server.uri('', `tls-certificates=${pki}`))), {
    name: 'NbdUriError',
    message: /allowLocalFiles/,
  })
  await rejected(t, NbdClient.connect(server.uri()), {
    name: 'NbdOptionError',
    code: 'ERR_TLS_REQD',
    message: /write nbds:/,
  })
})

t.test('certificates: a server that wants one of ours gets it', { skip: skipQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const image = join(folder(stack), 'image')
  writeFileSync(image, Buffer.alloc(8 * MiB))
  const creds = `tls-creds-x509,id=tls0,endpoint=server,dir=${pki},verify-peer=yes`
  const server = await qemuNbd(stack, '--format=raw', `--object=${creds}`, '--tls-creds=tls0', image)
  const [ca, cert, key] = ['ca-cert', 'client-cert', 'client-key'].map(name => readFileSync(join(pki, `${name}.pem`))) as [
    Buffer,
    Buffer,
    Buffer,
  ]
  const uri = secure(server.uri())
  t.ok(await readsAndWrites(uri, { tls: { ca, cert, key, serverName: 'server.test' } }))
  await rejected(t, NbdClient.connect(uri, { tls: { ca, serverName: 'server.test' } }), {
    fatal: true,
    name: 'NbdTlsError',
    message: /closed the connection.* may want a certificate of the client, and none was given/,
  })
})

t.test('what is wrong with certificates is said, and what to do about it', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const [pki, old] = [makePki(stack), makePki(stack, { days: -1 })]
  const server = await nbdkit(stack, '--tls=require', '--tls-verify-peer', `--tls-certificates=${pki}`, 'memory', '8M')
  const expired = await nbdkit(stack, '--tls=require', `--tls-certificates=${old}`, 'memory', '8M')
  /** The client's, of files from here and there. */
  const mixed = (...files: readonly (readonly [from: string, name: string])[]) => {
    const dir = folder(stack)
    for (const [from, name] of [[pki, 'ca-cert.pem'] as const, ...files]) copyFileSync(join(from, name), join(dir, name))
    return dir
  }
  const [cert, key] = ['client-cert.pem', 'client-key.pem'] as const
  const garbage = mixed()
  writeFileSync(join(garbage, 'ca-cert.pem'), '')
  const at =
    (to: typeof server, dir: string, host = 'server.test') =>
    () =>
      NbdClient.connect(secure(to.uri('', `tls-hostname=${host}&tls-certificates=${dir}`)), { allowLocalFiles: true })
  for (const [call, message] of [
    [at(server, mixed()), /may want a certificate of the client, and none was given \(client-cert\.pem/],
    [at(server, mixed([old, cert], [old, key])), /may not accept the client's certificate/],
    [at(server, pki, 'other.test'), /other\.test.*DNS:server\.test.* give its name by tls-hostname/],
    [at(server, old), /signed by nobody who is trusted here: give the certificate of its authority, as ca-cert\.pem/],
    [at(expired, old), /the server's certificate has expired/],
    [at(server, mixed([pki, cert], [old, key])), /the client's key is not that of its certificate/],
    [at(server, mixed([pki, cert])), /only one of client-cert\.pem and client-key\.pem/],
    [at(server, garbage), /ca-cert\.pem is no certificate in PEM form/],
  ] as const)
    await rejected(t, call(), { name: 'NbdTlsError', message, fatal: true })
})

t.test('a server that hangs up when it has seen the certificate did not hang up on an option', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const { ca, cert, key } = serverPems(pki)
  const tls = { ca, cert, key, serverName: 'server.test' }
  let reset = false
  const uri = await play(
    stack,
    async peer => {
      peer.send(hello())
      await peer.read(4)
      await peer.option()
      peer.send(optionReply(Option.STARTTLS, OptionReply.ACK))
      const inner = peer.secure({ cert, key })
      if (!reset) return void inner.socket.once('secure', () => inner.socket.end())
      for (;;) {
        const { option, data } = await inner.option()
        const name = Object.keys(Option).find(name => Option[name as keyof typeof Option] === option) as keyof typeof Option
        inner.send((structuredAnswers[name] ?? refuse(name, 'ERR_UNSUP'))(data, inner)!)
        if (option === Option.GO) break
      }
      await inner.request()
      peer.socket.resetAndDestroy()
    },
    'tcp',
  )
  const message = /closed the connection and did not say why: it may not accept the client's certificate/
  await rejected(t, NbdClient.connect(secure(uri), { tls }), { name: 'NbdTlsError', message })
  reset = true
  const client = await NbdClient.connect(secure(uri), { tls })
  await t.rejects(
    client.read(0, 512) as Promise<unknown> as Promise<void>,
    { name: 'NbdConnectionError' },
    'later it is about the connection',
  )
})

t.test('a pre-shared key: nbdkit and qemu-nbd, by options and by URI', { skip: skip || skipQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const dir = folder(stack)
  const file = join(dir, 'keys.psk')
  writeFileSync(file, `alice:${KEY}\nbob:${KEY.replaceAll('0', 'f')}\n`)
  const image = join(dir, 'image')
  writeFileSync(image, Buffer.alloc(8 * MiB))
  const servers = [
    await nbdkit(stack, '--tls=require', `--tls-psk=${file}`, 'memory', '8M'),
    await qemuNbd(stack, '--format=raw', `--object=tls-creds-psk,id=tls0,endpoint=server,dir=${dir}`, '--tls-creds=tls0', image),
  ]
  for (const server of servers) {
    const uri = secure(server.uri())
    const psk = { identity: 'alice', key: Buffer.from(KEY, 'hex') }
    t.ok(await readsAndWrites(uri, { tls: { psk } }))
    const byUri = secure(server.uri('', `tls-psk-file=${file}`))
    t.ok(await readsAndWrites(byUri.replace('://', '://bob@'), { allowLocalFiles: true }), 'as bob')
    const wrong = { tls: { psk: { identity: 'alice', key: Buffer.alloc(16) } } }
    await rejected(t, NbdClient.connect(uri, wrong), {
      fatal: true,
      name: 'NbdTlsError',
      message: /may not know the user 'alice', have another key for it/,
    })
    await rejected(t, NbdClient.connect(byUri.replace('://', '://carol@'), { allowLocalFiles: true }), {
      name: 'NbdTlsError',
      message: /no line 'carol:/,
    })
  }
})

t.test('anonymous TLS works where the server allows it', { skip: skipQemu }, async t => {
  await using stack = new AsyncDisposableStack()
  const image = join(folder(stack), 'image')
  writeFileSync(image, Buffer.alloc(8 * MiB))
  const object = '--object=tls-creds-anon,id=tls0,endpoint=server,priority=NORMAL:-VERS-TLS1.3'
  const server = await qemuNbd(stack, '--format=raw', object, '--tls-creds=tls0', image)
  t.ok(await readsAndWrites(secure(server.uri('', 'tls-type=anon')), {}))
})

t.test('a server whose certificate is shown in place of the key is refused', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const server = await nbdkit(stack, '--tls=require', `--tls-certificates=${pki}`, 'memory', '8M')
  const psk = { identity: 'alice', key: Buffer.from(KEY, 'hex') }
  const ca = readFileSync(join(pki, 'ca-cert.pem'))
  await rejected(t, NbdClient.connect(secure(server.uri()), { tls: { psk, connectionOptions: { ca } } }), { name: 'NbdTlsError' })
  await rejected(t, NbdClient.connect(secure(server.uri()), { tls: { psk } }), {
    name: 'NbdTlsError',
    message: /shows a certificate, and did not use the pre-shared key/,
  })
})

const wanted: TlsOptions = { serverName: 'server.test', ca: '' }

t.test('nbds never goes on in the clear', async t => {
  for (const reply of ['ERR_UNSUP', 'ERR_POLICY', 'ERR_INVALID', 'ERR_PLATFORM'] as const) {
    await using stack = new AsyncDisposableStack()
    const seen: number[] = []
    const uri = await play(stack, async peer => {
      await handshake(peer, {
        ...structuredAnswers,
        STARTTLS: refuse('STARTTLS', reply, 'no TLS here'),
        EXTENDED_HEADERS: () => (seen.push(Option.EXTENDED_HEADERS), undefined),
      })
    })
    await rejected(t, NbdClient.connect(secure(uri), { tls: wanted }), {
      name: 'NbdOptionError',
      code: reply,
      message: /STARTTLS.*no TLS here.*write nbd:/,
    })
    t.same(seen, [], 'nothing else was asked')
  }
  await using stack = new AsyncDisposableStack()
  const old = await play(stack, async peer => {
    await handshake(peer, structuredAnswers, hello(0))
  })
  await rejected(t, NbdClient.connect(secure(old), { tls: wanted }), { name: 'NbdOptionError', message: /STARTTLS/ })
  await rejected(t, NbdClient.connect(old, { tls: wanted }), { name: 'NbdUriError', message: /write nbds/ })
})

t.test('plain text behind the answer to STARTTLS is an attack', async t => {
  await using stack = new AsyncDisposableStack()
  const ack = optionReply(Option.STARTTLS, OptionReply.ACK)
  const uri = await play(stack, async peer => {
    await handshake(peer, { STARTTLS: () => bytes(ack, structuredAnswers.GO!(Buffer.alloc(0), peer)!) })
  })
  await rejected(t, NbdClient.connect(secure(uri), { tls: wanted }), { name: 'NbdProtocolError', message: /plain text behind/ })
})

t.test('a peer that agrees to TLS and then does something else is left', async t => {
  const ack = optionReply(Option.STARTTLS, OptionReply.ACK)
  for (const [what, error] of [
    ['garbage', { name: 'NbdTlsError' }],
    ['nothing', { name: 'NbdTimeoutError' }],
    ['end', { name: /NbdTlsError|NbdConnectionError/, fatal: true }],
  ] as const) {
    await using stack = new AsyncDisposableStack()
    const uri = await play(stack, async peer => {
      await handshake(peer, { STARTTLS: () => ack }).catch(() => {
        // The client speaks TLS now, which our peer takes for a wrong option.
        if (what === 'garbage') peer.send(Buffer.alloc(100, 'x'))
        if (what === 'end') peer.socket.end()
      })
      await peer.ended()
    })
    await rejected(t, NbdClient.connect(secure(uri), { tls: wanted, connectTimeout: 300 }), error)
  }
})

t.test('all that was agreed on before TLS is agreed on again, and the end is announced', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const pki = makePki(stack)
  const { ca, cert, key } = serverPems(pki)
  const ended = Promise.withResolvers<boolean>()
  const options: number[] = []
  const uri = await play(stack, async peer => {
    peer.send(hello())
    await peer.read(4)
    options.push((await peer.option()).option)
    peer.send(optionReply(Option.STARTTLS, OptionReply.ACK))
    const inner = peer.secure({ cert, key })
    for (;;) {
      const { option, data } = await inner.option()
      options.push(option)
      const name = Object.keys(Option).find(name => Option[name as keyof typeof Option] === option) as keyof typeof Option
      inner.send((structuredAnswers[name] ?? refuse(name, 'ERR_UNSUP'))(data, inner)!)
      if (option === Option.GO) break
    }
    inner.socket.on('end', () => ended.resolve(true))
    for (let reply: Buffer | undefined; (reply = serve(await inner.request(), 'structured'));) inner.send(reply)
  })
  const client = await NbdClient.connect(secure(uri), { tls: { ca, serverName: 'server.test' } })
  t.ok((await client.read(0, 1 << 20)).every(byte => byte === 0x5a))
  t.same(options, [Option.STARTTLS, Option.EXTENDED_HEADERS, Option.STRUCTURED_REPLY, Option.GO])
  await client.close()
  t.ok(await ended.promise, 'TLS was closed, and not just cut off')
})
