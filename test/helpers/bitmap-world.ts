// A qcow2 image with bitmaps, in a daemon's graph without the daemon; and the files as a crash leaves them.

import { existsSync, readdirSync, rmSync } from 'node:fs'
import { copyFile, mkdir } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { IoError } from '../../src/base/errors.ts'
import { ActivityFolder } from '../../src/bitmaps/activity-folder.ts'
import type { LogFile } from '../../src/bitmaps/activity-log.ts'
import { PatientLogs } from '../../src/bitmaps/patient-logs.ts'
import { bitmapAdd, bitmapClear, bitmapDisable, bitmapEnable, bitmapMerge, bitmapRemove } from '../../src/bitmaps/actions.ts'
import type { Action } from '../../src/block/action.ts'
import { Graph } from '../../src/block/graph.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { drivers } from '../../src/drivers/index.ts'
import { transact } from '../../src/transactions/transact.ts'
import { qemuImg, scratchFolder } from './qemu.ts'
import { randomBytes } from './random-bytes.ts'

/** A daemon's graph over a folder, which `crash` leaves as a kill would. */
export async function bitmapWorld(stack: AsyncDisposableStack, { logged = true, size = '64M', options = '' } = {}) {
  const folder = await scratchFolder(stack)
  const image = `${folder}/image.qcow2`
  await qemuImg('create', '-q', '-f', 'qcow2', ...(options ? ['-o', options] : []), image, size)
  return new BitmapWorld(folder, image, logged)
}

class FragileFolder extends ActivityFolder {
  broken = false
  /** What waits for it does so until it is resolved. */
  hangs: PromiseWithResolvers<void> | undefined

  override create(id: string, content: Buffer): Promise<LogFile> {
    return this.#fragile(async () => {
      const file = await super.create(id, content)
      return {
        write: (offset, bytes) => this.#fragile(() => file.write(offset, bytes)),
        sync: () => this.#fragile(() => file.sync()),
        [Symbol.asyncDispose]: async () => {
          await this.hangs?.promise
          await file[Symbol.asyncDispose]()
        },
      }
    })
  }

  override async remove(id: string) {
    await this.hangs?.promise
    await super.remove(id)
  }

  async #fragile<T>(work: () => Promise<T>): Promise<T> {
    await this.hangs?.promise
    if (this.broken) throw new IoError('the state folder is broken')
    return work()
  }
}

export class BitmapWorld {
  #crashes = 0

  constructor(
    readonly folder: string,
    public image: string,
    private readonly logged: boolean,
  ) {}

  get logs() {
    return `${this.folder}/activity`
  }

  async open(more: object = {}) {
    const logs = this.logged ? new FragileFolder(this.logs) : undefined
    const patient = logs && new PatientLogs(logs)
    const graph = new Graph(drivers, { logs: patient })
    const events: string[] = []
    graph.watch((_name, event) => void events.push(event.error.message))
    const node = await graph.add({
      driver: 'qcow2',
      'node-name': 'disk',
      discard: 'unmap',
      ...more,
      file: { driver: 'file', filename: this.image, discard: 'unmap', ...more },
    })
    const edge = node.readOnly
      ? undefined
      : graph.attach(node, { description: 'a guest', perm: Permission.write | Permission.resize, shared: ALL })
    const bitmaps = () => node.bitmaps
    return {
      graph,
      node,
      events,
      write: (offset: number, length: number, seed = 1) => edge!.write(offset, randomBytes(length, seed)),
      do: (...actions: Action[]) => transact(actions, commits => graph.drained([node], commits)),
      add: (name: string, granularity = 65536, disabled = false) =>
        bitmapAdd(bitmaps, { name, granularity, persistent: true, disabled }),
      clear: (name: string) => bitmapClear(bitmaps, name),
      enable: (name: string) => bitmapEnable(bitmaps, name),
      disable: (name: string) => bitmapDisable(bitmaps, name),
      remove: (name: string) => bitmapRemove(bitmaps, name),
      merge: (target: string, ...sources: string[]) =>
        bitmapMerge(
          bitmaps,
          target,
          sources.map(name => ({ name })),
        ),
      breakLogs: () => (logs!.broken = true),
      mendLogs: () => (logs!.broken = false),
      /** Nobody waits for long for what would wait for ever. */
      hangLogs() {
        logs!.hangs = Promise.withResolvers()
        patient!.patienceMs = 50
      },
      /** What hung has ended when it returns. */
      async unhangLogs() {
        logs!.hangs!.resolve()
        logs!.hangs = undefined
        patient!.patienceMs = 60_000
        while (patient!.hangs) await sleep(5)
      },
      close: () => graph[Symbol.asyncDispose](),
    }
  }

  /** What is in the files now is what the next daemon finds. The old one goes on with files that nobody sees. */
  async crash() {
    const folder = `${this.folder}/${++this.#crashes}`
    await mkdir(folder)
    await copyFile(this.image, `${folder}/image.qcow2`)
    return new BitmapWorld(folder, `${folder}/image.qcow2`, this.logged).#withLogs(this.logs)
  }

  loseLogs() {
    rmSync(this.logs, { recursive: true })
  }

  /** As the next daemon finds them. */
  async stateAfterCrash() {
    const found = await (await this.crash()).open()
    const state = stateOf(found)
    await found.close()
    return state
  }

  async #withLogs(from: string) {
    if (!existsSync(from)) return this
    await mkdir(this.logs)
    for (const name of readdirSync(from)) await copyFile(`${from}/${name}`, `${this.logs}/${name}`)
    return this
  }
}

export type OpenedDisk = Awaited<ReturnType<BitmapWorld['open']>>

export const stateOf = ({ node }: OpenedDisk) =>
  Object.fromEntries(
    Array.from(node.bitmaps, bitmap => [
      bitmap.name,
      bitmap.inconsistent ? 'inconsistent' : `${bitmap.recording ? 'on' : 'off'} ${bitmap.count / bitmap.granularity}`,
    ]),
  )
