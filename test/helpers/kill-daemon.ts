// A daemon that is killed, without a warning, while a guest writes over NBD and a manager adds and removes bitmaps; and what the next one
// finds of the disk and of a bitmap that records all along.
//
// By hand, from the project's folder: scripts/on-node-24 dist/test/helpers/kill-daemon.js [KILLS [SEED [qcow2|raw]]]

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { NbdClient } from 'nbd-client-ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { scratchFolder } from './control.ts'
import { generator, randomBytes } from './random-bytes.ts'
import { seed as ownSeed } from './seed.ts'
import { environment, WHOLE } from './stillpoint.ts'
import { run } from './tools.ts'

const SIZE = 64 << 20
const GRANULARITY = 65536
const DEPTH = 16
const LONGEST = 64 << 10
/** The daemon is killed a moment after so many, or fewer, writes were answered, however long they took. */
const MOST_ANSWERS = 500
/** In which a thread has begun. */
const BEFORE_THREAD = 300

export interface KillResults {
  kills: number
  /** Of these each kill had some. */
  answeredWrites: number
  /** Granules, over all kills. */
  changed: number
  marked: number
  inconsistent: number
  /** Of daemons that were killed after they had made one and before the image named it, or behind the last use of one. */
  logsLeft: number
  /** Sentences; empty when all is well. */
  wrong: string[]
}

/** Of a raw image the bitmaps are in a second one. */
export type Format = 'qcow2' | 'raw'

interface NodeWithBitmaps {
  readonly 'dirty-bitmaps'?: readonly { readonly name: string; readonly inconsistent?: boolean }[]
}

class Daemon implements AsyncDisposable {
  private constructor(
    private readonly child: ChildProcess,
    private readonly exited: Promise<unknown>,
    readonly qmp: QmpClient,
    private readonly socket: string,
  ) {}

  /** Clients are lent to threads as soon as may be. */
  static async start(folder: string, format: Format): Promise<Daemon> {
    const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', join(folder, 's.yaml')], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, STILLPOINT_LEND_AFTER: '1', ...environment() },
    })
    let log = ''
    child.stderr.on('data', (data: Buffer) => (log += data.toString()))
    const exited = once(child, 'exit')
    while (!/ready machines=/.test(log) && child.exitCode === null) await Promise.race([once(child.stderr, 'data'), exited])
    if (child.exitCode !== null) throw new Error(`the daemon did not start: ${log}`)
    const qmp = await QmpClient.connect(join(folder, 'control.sock'))
    const daemon = new Daemon(child, exited, qmp, join(folder, 'nbd.sock'))
    const file = { driver: 'file', filename: join(folder, `image.${format}`) }
    const bitmaps = format === 'raw' && { bitmaps: { driver: 'file', filename: join(folder, 'bitmaps.qcow2') } }
    await qmp.execute('blockdev-add', { driver: format, 'node-name': 'disk', file, ...bitmaps })
    return daemon
  }

  async connect(more: object = {}): Promise<NbdClient> {
    await this.qmp.execute('block-export-add', { type: 'nbd', id: 'disk', name: 'disk', 'node-name': 'disk', ...more })
    const contexts = 'bitmaps' in more ? { contexts: ['qemu:dirty-bitmap:b'] } : {}
    return NbdClient.connect(`nbd+unix:///disk?socket=${this.socket}`, contexts)
  }

  async disconnect(client: NbdClient) {
    await client[Symbol.asyncDispose]()
    await this.qmp.execute('block-export-del', { id: 'disk', mode: 'hard' })
  }

  async kill() {
    this.child.kill('SIGKILL')
    await this.exited
  }

  async stop() {
    this.child.kill('SIGTERM')
    await this.exited
  }

  async [Symbol.asyncDispose]() {
    this.child.kill('SIGKILL')
    await this.exited
  }
}

export async function killRepeatedly(
  stack: AsyncDisposableStack,
  { kills, seed, format, progress }: { kills: number; seed: number; format: Format; progress?: (results: KillResults) => void },
) {
  const folder = await scratchFolder(stack)
  writeFileSync(join(folder, 's.yaml'), 'state: ./state\ncontrol: { socket: ./control.sock }\nnbd: [ { unix: ./nbd.sock } ]\n')
  await run('qemu-img', ['create', '-q', '-f', format, join(folder, `image.${format}`), String(SIZE)])
  if (format === 'raw') writeFileSync(join(folder, 'bitmaps.qcow2'), '')
  const random = generator(seed)
  const results: KillResults = { kills: 0, answeredWrites: 0, changed: 0, marked: 0, inconsistent: 0, logsLeft: 0, wrong: [] }
  let daemon = stack.use(await Daemon.start(folder, format))
  await daemon.qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 'b', granularity: GRANULARITY, persistent: true })
  for (; results.kills < kills; results.kills++) {
    progress?.(results)
    const guest = await daemon.connect({ writable: true })
    const model = await guest.read(0, SIZE)
    const baseline = Buffer.from(model)
    await daemon.qmp.execute('block-dirty-bitmap-clear', { node: 'disk', name: 'b' })

    // Every other time the guest is served by a thread, which gives back what is to be durable; it has to be there first, and the log forgets now
    // and then what it had.
    const byThread = results.kills % 2 === 1
    const rareness = byThread ? 300 : 8
    let killed = false
    const underLoad = Promise.withResolvers<void>()
    let answersToCome = 1 + (random() % MOST_ANSWERS) + (byThread ? BEFORE_THREAD : 0)
    const answered = new Set<number>()
    const uncertain = new Set<number>()
    /** What an image knows of where its clusters are is in the daemon's memory until it is flushed. */
    const durable = new Set<number>()
    const write = async () => {
      for (;;) {
        const length = 512 * (1 + (random() % (LONGEST / 512)))
        const offset = 512 * (random() % ((SIZE - length) / 512))
        const data = randomBytes(length, random())
        const fua = random() % rareness === 0
        const granules = Array.from(
          { length: Math.floor((offset + length - 1) / GRANULARITY) - Math.floor(offset / GRANULARITY) + 1 },
          (_, index) => Math.floor(offset / GRANULARITY) + index,
        )
        if (granules.some(granule => uncertain.has(granule))) continue // only one at a time writes there
        for (const granule of granules) uncertain.add(granule)
        try {
          await guest.write(offset, data, { fua })
        } catch (error) {
          if (!killed) throw error
          return // and what of this is there nobody knows
        }
        model.set(data, offset)
        results.answeredWrites++
        if (--answersToCome === 0) underLoad.resolve()
        for (const granule of granules) {
          uncertain.delete(granule)
          answered.add(granule)
          if (fua) durable.add(granule)
          else durable.delete(granule)
        }
      }
    }
    const manage = async () => {
      try {
        for (;;) {
          await daemon.qmp.execute('block-dirty-bitmap-add', { node: 'disk', name: 't', persistent: true })
          await sleep(random() % (byThread ? 250 : 30))
          await daemon.qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name: 't' })
          await sleep(random() % (byThread ? 250 : 30))
        }
      } catch (error) {
        if (!killed) throw error
      }
    }
    const busy = [...Array.from({ length: DEPTH }, write), ...(byThread || random() % 2 === 0 ? [manage()] : [])]
    await Promise.race([underLoad.promise, Promise.all(busy)])
    await sleep(random() % 20)
    killed = true
    await daemon.kill()
    await Promise.all(busy)
    await guest[Symbol.asyncDispose]().catch((error: unknown) => void error)

    daemon = stack.use(await Daemon.start(folder, format))
    const wrong = (what: string) => results.wrong.push(`kill ${results.kills + 1} of seed ${seed}: ${what}`)
    const nodes = (await daemon.qmp.execute('query-named-block-nodes', { flat: true })) as NodeWithBitmaps[]
    const bitmaps = nodes.flatMap(node => node['dirty-bitmaps'] ?? [])
    if (bitmaps.some(({ inconsistent }) => inconsistent)) {
      results.inconsistent++
      wrong('a bitmap is inconsistent')
      break
    }
    for (const { name } of bitmaps)
      if (name === 't') await daemon.qmp.execute('block-dirty-bitmap-remove', { node: 'disk', name })
    await daemon.qmp.execute('block-dirty-bitmap-disable', { node: 'disk', name: 'b' })
    const reader = await daemon.connect({ bitmaps: ['b'] })
    const content = await reader.read(0, SIZE)
    const dirty = new Set<number>()
    for await (const { offset, length, status } of reader.extents())
      if (status['qemu:dirty-bitmap:b']! & 1)
        for (let at = offset; at < offset + length; at += GRANULARITY) dirty.add(at / GRANULARITY)
    await daemon.disconnect(reader)
    await daemon.qmp.execute('block-dirty-bitmap-enable', { node: 'disk', name: 'b' })
    results.marked += dirty.size
    for (let granule = 0; granule < SIZE / GRANULARITY; granule++) {
      const [from, to] = [granule * GRANULARITY, (granule + 1) * GRANULARITY]
      const changed = !content.subarray(from, to).equals(baseline.subarray(from, to))
      if (changed) results.changed++
      if ((changed || answered.has(granule)) && !dirty.has(granule)) wrong(`granule ${granule} has changed and is not marked`)
      if (durable.has(granule) && !uncertain.has(granule) && !content.subarray(from, to).equals(model.subarray(from, to)))
        wrong(`granule ${granule} does not hold what was written to it durably`)
    }
  }
  await daemon.stop()
  results.logsLeft = readdirSync(join(folder, 'state', 'activity')).length
  const check = await run('qemu-img', ['info', '--output=json', join(folder, format === 'raw' ? 'bitmaps.qcow2' : 'image.qcow2')])
  if (check.includes('in-use')) results.wrong.push('a bitmap is in use after an orderly end')
  return results
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await using stack = new AsyncDisposableStack()
  const [kills = 200, seed = ownSeed] = process.argv.slice(2, 4).map(Number)
  const format = process.argv[4] === 'raw' ? 'raw' : 'qcow2'
  const progress = (results: KillResults) => process.stderr.write(`${JSON.stringify(results)}\n`)
  process.stdout.write(`${JSON.stringify(await killRepeatedly(stack, { kills, seed, format, progress }), undefined, 2)}\n`)
}
