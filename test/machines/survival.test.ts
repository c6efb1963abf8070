// Checkpoints survive an orderly restart of the daemon, and its sudden death under load: what changed since is missed by no bitmap, on raw
// images, qcow2 images, chains of them, and over snapshots.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { NbdClient } from 'nbd-client-ts'
import t from 'tap'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { missing, qemuImg, scratchFolder } from '../helpers/qemu.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { WHOLE } from '../helpers/stillpoint.ts'

const skip = missing('qemu-img')
const MiB = 1 << 20
const SIZE = 16 * MiB
const GRANULE = 65536

interface Daemon extends AsyncDisposable {
  execute<Result = unknown>(command: string, args?: object): Promise<Result>
  nbd(name: string, contexts?: readonly string[]): Promise<NbdClient>
  /** Ends it: in its own way. */
  stop(): Promise<void>
}

/** A daemon in this process, which ends in an orderly way. */
async function start(folder: string): Promise<Daemon> {
  const said: string[] = []
  const log = createLog('debug', { write: line => said.push(line) }, { journal: true })
  const appliance = await Appliance.start(await loadSettings(`${folder}/stillpoint.yaml`), log)
  return clientOf(folder, async () => appliance[Symbol.asyncDispose]())
}

/** A daemon that can be killed. */
async function startProcess(folder: string): Promise<Daemon> {
  const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${folder}/stillpoint.yaml`], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const exit = once(child, 'exit')
  const said: Buffer[] = []
  child.stderr.on('data', (data: Buffer) => said.push(data))
  const log = () => Buffer.concat(said).toString()
  while (!/\bready machines=/.test(log())) {
    if (child.exitCode !== null) throw new Error(`the daemon did not start: ${log()}`)
    await sleep(20)
  }
  return clientOf(folder, async () => {
    child.kill('SIGKILL')
    await exit
  })
}

async function clientOf(folder: string, end: () => Promise<void>): Promise<Daemon> {
  const qmp = await QmpClient.connect(`${folder}/control.sock`)
  const clients: NbdClient[] = []
  let ended: Promise<void> | undefined
  const stop = () => (ended ??= end())
  return {
    execute: <Result>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>,
    async nbd(name, contexts = []) {
      const client = await NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`, { contexts: [...contexts] })
      clients.push(client)
      return client
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

type Kind = 'raw' | 'qcow2' | 'chain'

async function machine(stack: AsyncDisposableStack, kind: Kind, content: Buffer) {
  const folder = await scratchFolder(stack)
  await writeFile(`${folder}/content`, content)
  const image = kind === 'raw' ? 'disk.raw' : 'disk.qcow2'
  if (kind === 'raw') await writeFile(`${folder}/${image}`, content)
  else await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', `${folder}/content`, `${folder}/${image}`)
  if (kind === 'chain') {
    await qemuImg('create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', `${folder}/top.qcow2`)
  }
  const top = kind === 'chain' ? 'top.qcow2' : image
  const format = kind === 'raw' ? 'raw' : 'qcow2'
  await writeFile(
    `${folder}/stillpoint.yaml`,
    `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { root: { image: ./${top}, format: ${format} } } } }
`,
  )
  return folder
}

/** What an increment since the checkpoint finds, and the whole disk at that instant. */
async function increment(daemon: Daemon, since: string) {
  const name = `s${Math.trunc(Math.random() * 1e9)}`
  const session = await daemon.execute<{ disks: { export: string; bitmap: string }[] }>('backup-begin', {
    machine: 'db',
    mode: 'pull',
    name,
    since,
  })
  const { export: path, bitmap } = session.disks[0]!
  const context = `qemu:dirty-bitmap:${bitmap}`
  const view = await daemon.nbd(path, [context])
  const now = await view.read(0, SIZE)
  const dirty = new Set<number>()
  for await (const { offset, length, status } of view.extents({ contexts: [context] })) {
    if (status[context] !== 1) continue
    for (let at = offset; at < offset + length; at += GRANULE) dirty.add(Math.floor(at / GRANULE))
  }
  await view.close()
  await daemon.execute('backup-finish', { name })
  return { now, dirty }
}

/** The old copy, brought up to date with what the increment says has changed. */
function applied(old: Buffer, { now, dirty }: Awaited<ReturnType<typeof increment>>) {
  const copy = Buffer.from(old)
  for (const granule of dirty) copy.set(now.subarray(granule * GRANULE, (granule + 1) * GRANULE), granule * GRANULE)
  return copy
}

const write = (client: NbdClient, granule: number, seed: number) => client.write(granule * GRANULE + 512, randomBytes(1000, seed))

for (const kind of ['raw', 'qcow2', 'chain'] as const) {
  t.test(`${kind}: checkpoints and what changed since are there after an orderly restart`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const content = diskContent(SIZE, 3)
    const folder = await machine(stack, kind, content)
    {
      await using daemon = await start(folder)
      const guest = await daemon.nbd('db/root')
      await write(guest, 1, 1)
      await daemon.execute('checkpoint-create', { machine: 'db', name: 'one' })
      await write(guest, 2, 2)
      await daemon.execute('checkpoint-create', { machine: 'db', name: 'two' })
      await write(guest, 3, 3)
      await daemon.execute('checkpoint-create', { machine: 'db', name: 'gone' })
      await write(guest, 4, 4)
      await daemon.execute('checkpoint-delete', { machine: 'db', name: 'gone' })
      await daemon.stop()
    }
    await using daemon = await start(folder)
    const guest = await daemon.nbd('db/root')
    await write(guest, 5, 5)
    for (const [since, granules] of [
      ['one', [2, 3, 4, 5]],
      ['two', [3, 4, 5]],
    ] as const)
      t.same([...(await increment(daemon, since)).dirty], granules, `since ${since}`)
    t.match(await daemon.execute('query-checkpoints'), [
      { name: 'one', usable: true, current: false },
      { name: 'two', usable: true, current: true },
    ])
    t.match(await daemon.execute('checkpoint-repair', { machine: 'db' }), { findings: [] })
  })
}

for (const kind of ['raw', 'chain'] as const) {
  t.test(`${kind}: a daemon that is killed under load loses no mark, and an increment is exact`, { skip }, async t => {
    await using stack = new AsyncDisposableStack()
    const content = diskContent(SIZE, 4)
    const folder = await machine(stack, kind, content)
    let made = 0
    let copy: Buffer = content
    for (let round = 0; round < 2; round++) {
      await using daemon = await startProcess(folder)
      if (round === 0) await daemon.execute('checkpoint-create', { machine: 'db', name: 'c0' })
      const found = await increment(daemon, `c${made}`)
      t.ok(applied(copy, found).equals(found.now), `round ${round}`)
      t.ok(found.dirty.size < SIZE / GRANULE, 'and not by taking everything')
      // A new base for the next round.
      await daemon.execute('checkpoint-create', { machine: 'db', name: `c${++made}` })
      copy = found.now
      const guest = await daemon.nbd('db/root')
      const load = (async () => {
        for (let count = 0; ; count++)
          await guest.write(((count * 7919) % 60) * GRANULE + (count % 100) * 512, randomBytes(2000, count))
      })()
      await sleep(100 + round * 150)
      const cutOff = Promise.allSettled([
        load,
        round === 1 ? daemon.execute('checkpoint-create', { machine: 'db', name: 'half' }) : undefined,
      ])
      if (round === 1) await sleep(5)
      await daemon.stop()
      await cutOff
    }
    await using daemon = await start(folder)
    const found = await increment(daemon, `c${made}`)
    t.ok(applied(copy, found).equals(found.now))
    const { findings } = await daemon.execute<{ findings: unknown[] }>('checkpoint-repair', { machine: 'db' })
    t.same(findings, [], 'what was half-made is nobody’s')
  })
}

t.test('what changed since a checkpoint is the union over all layers, over a snapshot and restarts', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const content = diskContent(SIZE, 5)
  const folder = await machine(stack, 'raw', content)
  const since = async (daemon: Daemon, name: string) => [...(await increment(daemon, name)).dirty]
  {
    await using daemon = await start(folder)
    const guest = await daemon.nbd('db/root')
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'one' })
    await write(guest, 1, 1)
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'two' })
    await write(guest, 2, 2)
    await daemon.execute('blockdev-snapshot-sync', {
      'node-name': 'db.root',
      'snapshot-file': `${folder}/over.qcow2`,
      'snapshot-node-name': 'over',
    })
    await write(guest, 3, 3)
    t.same(await since(daemon, 'one'), [1, 2, 3])
    t.same(await since(daemon, 'two'), [2, 3])
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'three' })
    await write(guest, 4, 4)
    await daemon.stop()
  }
  {
    await using daemon = await start(folder)
    const disk = (await daemon.execute<{ disks: { image: string }[] }[]>('query-machines'))[0]!.disks[0]!
    t.equal(disk.image, `${folder}/over.qcow2`, 'the disk is where the snapshot has moved it')
    const guest = await daemon.nbd('db/root')
    await write(guest, 5, 5)
    const { now, dirty } = await increment(daemon, 'one')
    t.ok([1, 2, 3, 4, 5].every(granule => dirty.has(granule)))
    t.ok(applied(content, { now, dirty }).equals(now))
    await daemon.execute('checkpoint-delete', { machine: 'db', name: 'two' })
    const later = await increment(daemon, 'one')
    t.same(later.dirty, dirty, 'deleting one changes nothing about another')
    await daemon.stop()
  }
  await using daemon = await start(folder)
  const last = await increment(daemon, 'one')
  t.ok(applied(content, last).equals(last.now))
  t.match(await daemon.execute('checkpoint-repair', { machine: 'db' }), { findings: [] })
  t.match(await readFile(`${folder}/state/places-db.json`, 'utf8'), /over\.qcow2/)
})

t.test('orphans and broken bitmaps are listed and mended, and what is known stays known', { skip }, async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await machine(stack, 'qcow2', diskContent(SIZE, 6))
  {
    await using daemon = await start(folder)
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'one' })
    await daemon.execute('checkpoint-create', { machine: 'db', name: 'two' })
    await daemon.stop()
  }
  await qemuImg('bitmap', '--add', '-g', '64k', `${folder}/disk.qcow2`, 'checkpoint-lost')
  await qemuImg('bitmap', '--remove', `${folder}/disk.qcow2`, 'checkpoint-one')
  await using daemon = await start(folder)
  const findings = [
    { disk: 'root', node: 'db.root', bitmap: 'checkpoint-lost', problem: 'orphan' },
    { disk: 'root', checkpoint: 'one', bitmap: 'checkpoint-one', problem: 'missing' },
  ]
  t.match(await daemon.execute('checkpoint-repair', { machine: 'db' }), { mended: false, findings })
  await t.rejects(daemon.execute('backup-begin', { machine: 'db', mode: 'pull', since: 'one' }), /missing or broken bitmap/)
  t.match(await daemon.execute('checkpoint-repair', { machine: 'db', mend: true }), { mended: true, findings })
  t.match(await daemon.execute('checkpoint-repair', { machine: 'db' }), { findings: [] })
  const guest = await daemon.nbd('db/root')
  await write(guest, 7, 7)
  t.ok((await increment(daemon, 'two')).dirty.has(7))
  t.equal((await increment(daemon, 'one')).dirty.size, SIZE / GRANULE, 'of which nothing is known, everything counts')
})
