// Who is let in by tls-authz: the same clients that qemu-storage-daemon lets in, by the same rules.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import type { CommandLineStep } from '../../src/control/command-line.ts'
import { settingsWithoutFile } from '../../src/settings/without-file.ts'
import { scratchFolder } from '../helpers/control.ts'
import { makePki } from '../helpers/pki.ts'
import { qsdMissing } from '../helpers/qemu-storage-daemon.ts'
import { attempt, missing } from '../helpers/tools.ts'

const skip = qsdMissing || missing('openssl', 'qemu-img')
const IDENTITY = 'O=Example,CN=backup'

interface Authz {
  readonly type: string
  readonly [property: string]: unknown
}

const list = (policy: string | undefined, ...rules: (readonly [match: string, policy: string, format?: string])[]): Authz => ({
  type: 'authz-list',
  ...(policy && { policy }),
  rules: rules.map(([match, verdict, format]) => ({ match, policy: verdict, ...(format && { format }) })),
})

const cases: readonly (readonly [allowed: boolean, authz: Authz])[] = [
  [true, { type: 'authz-simple', identity: IDENTITY }],
  [false, { type: 'authz-simple', identity: 'CN=backup,O=Example' }],
  [false, list(undefined)],
  [true, list('allow')],
  [true, list('deny', ['CN=other', 'allow'], [IDENTITY, 'allow'])],
  [false, list('allow', [IDENTITY, 'deny'], [IDENTITY, 'allow'])],
  [true, list(undefined, ['*,CN=back?p', 'allow', 'glob'])],
  [false, list(undefined, ['*,CN=back?p', 'allow'])],
  [false, list(undefined, ['O=Exampl.,*', 'allow', 'glob'])],
]

/** A port that was free a moment ago. */
async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return String(port)
}

t.test('tls-authz lets in whom qemu-storage-daemon lets in', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const pki = await makePki(join(folder, 'pki'))
  const creds = `tls-creds-x509,id=t,dir=${pki},endpoint=`
  const connect = async (port: string) => {
    const image = `driver=nbd,host=localhost,port=${port},export=a,tls-creds=t`
    return await attempt('qemu-img', ['info', '--object', `${creds}client`, '--image-opts', image])
  }
  for (const [allowed, { type, ...properties }] of cases) {
    const steps = (port: string) =>
      [
        { option: 'object', text: `${creds}server` },
        { option: 'object', text: JSON.stringify({ 'qom-type': type, id: 'z', ...properties }) },
        { option: 'blockdev', text: 'null-co,node-name=a,size=65536,read-zeroes=on' },
        {
          option: 'nbd-server',
          text: `addr.type=inet,addr.host=127.0.0.1,addr.port=${port},tls-creds=t,tls-authz=z`,
        },
        { option: 'export', text: 'nbd,id=e,node-name=a' },
      ] as const
    const what = JSON.stringify(properties)

    const port = await freePort()
    const child = spawn(
      'qemu-storage-daemon',
      steps(port).flatMap(({ option, text }) => [`--${option}`, text]),
      { stdio: 'ignore' },
    )
    let theirs = await connect(port)
    for (let tries = 0; /Connection refused/.test(theirs.stderr) && tries < 100; tries++) {
      await sleep(20)
      theirs = await connect(port)
    }
    const exited = once(child, 'exit')
    child.kill()
    await exited
    t.equal(theirs.code === 0, allowed, `qemu-storage-daemon: ${what}`)

    const ourPort = await freePort()
    await using appliance = await Appliance.start(settingsWithoutFile(), createLog('silent'), steps(ourPort))
    const ours = await connect(ourPort)
    t.equal(ours.code === 0, allowed, `we: ${what} ${ours.stderr}`)
    await appliance[Symbol.asyncDispose]()
  }
})

t.test('rules in a file count as they stand when a client comes', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  const pki = await makePki(join(folder, 'pki'))
  const file = join(folder, 'rules.json')
  const write = (policy: string) => writeFileSync(file, JSON.stringify({ rules: [{ match: IDENTITY, policy }] }))
  write('allow')
  const port = await freePort()
  const log: string[] = []
  stack.use(
    await Appliance.start(settingsWithoutFile(), createLog('debug', { write: line => log.push(line) }), [
      { option: 'object', text: `tls-creds-x509,id=t,dir=${pki},endpoint=server` },
      { option: 'object', text: `authz-listfile,id=z,filename=${file}` },
      { option: 'blockdev', text: 'null-co,node-name=a,size=65536' },
      { option: 'nbd-server', text: `addr.type=inet,addr.host=127.0.0.1,addr.port=${port},tls-creds=t,tls-authz=z` },
      { option: 'export', text: 'nbd,id=e,node-name=a' },
    ]),
  )
  const image = `driver=nbd,host=localhost,port=${port},export=a,tls-creds=t`
  const connect = () =>
    attempt('qemu-img', ['info', '--object', `tls-creds-x509,id=t,dir=${pki},endpoint=client`, '--image-opts', image])
  t.equal((await connect()).code, 0)
  write('deny')
  t.not((await connect()).code, 0)
  t.match(log.join('\n'), /O=Example,CN=backup is not let in/)
  writeFileSync(file, 'nonsense')
  t.not((await connect()).code, 0, 'and nobody comes in by rules that cannot be read')
  t.match(log.join('\n'), /rules\.json is no list of rules/)
  write('allow')
  t.equal((await connect()).code, 0)
})

const start = (...steps: readonly CommandLineStep[]) => Appliance.start(settingsWithoutFile(), createLog('silent'), steps)

t.test('a tls-authz that cannot work is refused when the server is started', async t => {
  const server = 'addr.type=inet,addr.host=127.0.0.1,addr.port=0'
  await t.rejects(start({ option: 'nbd-server', text: `${server},tls-authz=z` }), /needs 'tls-creds'/)
  await t.rejects(start({ option: 'object', text: 'authz-listfile,id=z,filename=/nope' }), /Unable to read '\/nope'/)
})
