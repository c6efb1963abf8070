// A daemon of ours over a new repository on files, for measuring pushes.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { QmpClient } from '../src/control/qmp-client.ts'
import { root } from './demo/tools.ts'
import { measured } from './measured.ts'
import { startProgram } from './servers.ts'

export const main = [process.execPath, join(root, 'dist/src/main.js')] as const

interface Machines {
  /** Of machine `bench`. */
  readonly disks: Readonly<Record<string, string>>
  /** Machines of one disk. */
  readonly more?: Readonly<Record<string, string>>
  readonly encrypted: boolean
}

interface Session {
  readonly name: string
  readonly status: string
  readonly reason?: string
  readonly progress: { readonly read: number }
}

const disksOf = (paths: Readonly<Record<string, string>>) =>
  Object.fromEntries(Object.entries(paths).map(([name, image]) => [name, { image, format: 'raw' }]))

/** It is ready to push. */
export async function startDaemon(stack: AsyncDisposableStack, folder: string, { disks, more = {}, encrypted }: Machines) {
  const config = join(folder, 'config.yaml')
  const control = join(folder, 'control.sock')
  await writeFile(join(folder, 'key'), 'a key for a measurement')
  const settings = {
    state: join(folder, 'state'),
    control: { socket: control },
    nbd: [{ unix: join(folder, 'nbd.sock') }],
    machines: {
      bench: { disks: disksOf(disks) },
      ...Object.fromEntries(Object.entries(more).map(([name, image]) => [name, { disks: disksOf({ disk: image }) }])),
    },
    repositories: {
      bench: {
        plugin: 'file',
        path: join(folder, 'repository'),
        ...(encrypted && { encryption: { key: `file:${join(folder, 'key')}` } }),
      },
    },
  }
  await writeFile(config, JSON.stringify(settings))
  await measured(main[0], [main[1], 'repo', 'init', 'bench', '--config', config])
  const pid = await startProgram(stack, [...main, 'daemon', '--log-level', 'warn', '--config', config], control)
  const qmp = stack.use(await QmpClient.connect(control))
  return {
    pid,
    async push(machine = 'bench', since = 'auto') {
      const begun = performance.now()
      const { name } = (await qmp.execute('backup-begin', { machine, mode: 'push', repository: 'bench', since })) as Session
      for (;;) {
        const [session] = (await qmp.execute('query-backups', { name })) as [Session]
        const seconds = (performance.now() - begun) / 1000
        if (session.status === 'failed') throw new Error(`a push has failed: ${session.reason}`)
        if (session.status === 'finished') return { seconds, progress: session.progress }
        await sleep(20)
      }
    },
  }
}
