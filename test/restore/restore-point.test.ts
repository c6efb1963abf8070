// Restore points as nodes of a daemon: behind overlays that guests write at once, streamed while they do, across a restart.

import { once } from 'node:events'
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { openTarget } from '../../src/push/target.ts'
import { backingNameOf, parseBackingName } from '../../src/restore/restore-point.ts'
import { startAppliance } from '../helpers/appliance.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { newRepository, pushDisks, sourceOf } from '../helpers/push-point.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { silent } from '../helpers/s3.ts'
import { stillpoint, WHOLE } from '../helpers/stillpoint.ts'
import { attempt, missing, run } from '../helpers/tools.ts'

const CHUNK = 65536
const skip = missing('qemu-img')

async function backedUp(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const target = stack.use(await openTarget({ plugin: 'file', path: `${folder}/repo` }, { log: silent }))
  const repository = await newRepository(target)
  const content = diskContent(150 * CHUNK + 512, 1)
  const { key } = await pushDisks(repository, [{ name: 'root', source: sourceOf(content) }])
  return {
    folder,
    content,
    point: key.slice('points/'.length),
    repositories: `repositories: { offsite: { plugin: file, path: '${folder}/repo' } }\n`,
  }
}

async function over(execute: (command: string, args?: object) => Promise<unknown>, id: string) {
  for (;;) {
    const jobs = (await execute('query-jobs')) as { id: string; status: string; error?: string }[]
    const job = jobs.find(job => job.id === id)
    if (!job || job.status === 'concluded') return job?.error
    await sleep(20)
  }
}

t.test(
  'blockdev-add opens one, read-only; an overlay over it is written at once and streamed by block-stream',
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, content, point, repositories } = await backedUp(stack)
    const { execute, nbd } = await startAppliance(stack, { disks: { other: Buffer.alloc(512) }, more: repositories })
    const node = { driver: 'restore-point', 'node-name': 'then', repository: 'offsite', point, disk: 'root' }
    await t.rejects(execute('blockdev-add', node), /cannot be written; open it read-only/)
    for (const [wrong, why] of [
      [{ repository: 'onsite' }, /no repository 'onsite'/],
      [{ point: 'db/never' }, /no restore point/],
      [{ disk: 'swap' }, /has no disk 'swap'; it has 'root'/],
    ] as const)
      await t.rejects(execute('blockdev-add', { ...node, 'read-only': true, ...wrong }), why)
    await execute('blockdev-add', { ...node, 'read-only': true })
    const overlay = `${folder}/overlay.qcow2`
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', overlay, String(content.length)])
    const file = { driver: 'file', filename: overlay }
    await execute('blockdev-add', { driver: 'qcow2', 'node-name': 'now', file, backing: 'then' })
    await execute('block-export-add', { type: 'nbd', id: 'now', 'node-name': 'now', name: 'now', writable: true })
    const guest = await nbd('now')
    const bytes = randomBytes(5 * CHUNK, 3)
    await guest.write(CHUNK + 5, bytes)
    content.set(bytes, CHUNK + 5)
    t.ok((await guest.read(0, content.length)).equals(content))
    await execute('block-stream', { 'job-id': 'stream', device: 'now', 'auto-dismiss': false })
    await guest.write(0, bytes)
    content.set(bytes, 0)
    t.equal(await over(execute, 'stream'), undefined)
    await execute('blockdev-del', { 'node-name': 'then' })
    t.ok((await guest.read(0, content.length)).equals(content))
    await guest[Symbol.asyncDispose]()
    await execute('block-export-del', { id: 'now' })
    await execute('blockdev-del', { 'node-name': 'now' })
    writeFileSync(`${folder}/model`, content)
    t.match(await attempt('qemu-img', ['check', overlay]), { code: 0 })
    t.match(await attempt('qemu-img', ['compare', overlay, `${folder}/model`]), { code: 0 })
  },
)

t.test(
  "an overlay of `serve` is a machine's disk that a killed daemon finds again, and a pull makes it stand alone",
  { skip },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, content, point, repositories } = await backedUp(stack)
    const config = `${folder}/stillpoint.yaml`
    writeFileSync(
      config,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./root.qcow2, format: qcow2 } } } }
${repositories}`,
    )
    const child = spawn(process.execPath, [
      WHOLE,
      'serve',
      'offsite',
      `${point}/root`,
      '--writable',
      '--overlay',
      `${folder}/root.qcow2`,
      '--config',
      config,
    ])
    const exit = once(child, 'exit')
    await once(child.stdout, 'data')
    child.kill('SIGKILL')
    await exit
    const daemon = async () => {
      const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', config], { stdio: ['ignore', 'ignore', 'pipe'] })
      const exit = once(child, 'exit')
      let said = ''
      child.stderr.on('data', (data: Buffer) => (said += data.toString()))
      while (!/\bready machines=/.test(said)) {
        if (child.exitCode !== null) throw new Error(`the daemon did not start: ${said}`)
        await sleep(20)
      }
      const guest = await NbdClient.connect(`nbd+unix:///db/root?socket=${folder}/nbd.sock`)
      const qmp = await QmpClient.connect(`${folder}/control.sock`)
      const kill = async () => {
        child.kill('SIGKILL')
        await exit
      }
      stack.defer(kill)
      return { guest, qmp, kill }
    }
    for (const offset of [3 * CHUNK, 77 * CHUNK]) {
      const { guest, qmp, kill } = await daemon()
      t.ok((await guest.read(0, content.length)).equals(content))
      const bytes = randomBytes(CHUNK + 1, offset)
      await guest.write(offset, bytes)
      await guest.flush()
      content.set(bytes, offset)
      await qmp.execute('disk-pull', { machine: 'db', disk: 'root' })
      await kill()
    }
    const last = await daemon()
    t.ok((await last.guest.read(0, content.length)).equals(content))
    const pulled = await stillpoint(['--socket', `${folder}/control.sock`, 'disk', 'pull', 'db/root', '--wait'])
    t.equal(pulled.code, 0, pulled.stderr)
    t.ok((await last.guest.read(0, content.length)).equals(content))
    await last.kill()
    writeFileSync(`${folder}/model`, content)
    const info = JSON.parse(await run('qemu-img', ['info', '--output=json', `${folder}/root.qcow2`])) as object
    t.notOk('backing-filename' in info, 'nothing is behind it any more')
    t.match(await attempt('qemu-img', ['compare', `${folder}/root.qcow2`, `${folder}/model`]), { code: 0 })
  },
)

t.test('what an image says of the restore point behind it reads back, and nothing else does', async t => {
  const of = { repository: 'off"site', point: 'db/20260101T000000000Z-1234abcd', disk: 'rööt' }
  t.match(parseBackingName(backingNameOf(of)), of)
  for (const other of ['base.qcow2', 'json:', 'json:{"driver":"qcow2"}', 'json:{"driver":"restore-point","point":1}'])
    t.equal(parseBackingName(other), undefined, other)
})
