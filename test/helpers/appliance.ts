// A whole appliance in this process, in a folder of its own, with clients on its sockets.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { NbdClient, type ConnectOptions } from 'nbd-client-ts'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { QmpClient, type QmpEvent } from '../../src/control/qmp-client.ts'
import { parseSettings } from '../../src/settings/load.ts'
import { scratchFolder } from './control.ts'

export interface ApplianceOptions {
  /** Their content; a disk is called after its key, and the machine is `db`. */
  readonly disks: Readonly<Record<string, Buffer>>
  /** More keys of the machine, as YAML in one line: `, hooks: {}`. `$D` is the folder. */
  readonly machine?: string
  /** More lines of the configuration. */
  readonly more?: string
  /** An empty folder for all of it; by default one on a disk. */
  readonly folder?: string
}

/** Ends with the stack. */
export async function startAppliance(
  stack: AsyncDisposableStack,
  { disks, machine = '', more = '', ...options }: ApplianceOptions,
) {
  const folder = options.folder ?? (await scratchFolder(stack))
  const image = (name: string) => join(folder, `${name}.raw`)
  for (const [name, content] of Object.entries(disks)) await writeFile(image(name), content)
  const names = Object.keys(disks).map(name => `${name}: { image: ./${name}.raw, format: raw }`)
  const text = `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { db: { disks: { ${names.join(', ')} }${machine.replaceAll('$D', folder)} } }
${more}`
  const log: string[] = []
  const settings = parseSettings(Buffer.from(text), join(folder, 'stillpoint.yaml'))
  const start = () => Appliance.start(settings, createLog('debug', { write: line => log.push(line) }, { journal: true }))
  const appliance = stack.use(await start())
  const events: QmpEvent[] = []
  const qmp = stack.use(await QmpClient.connect(join(folder, 'control.sock'), { onEvent: event => events.push(event) }))
  const socket = join(folder, 'nbd.sock')
  return {
    appliance,
    folder,
    events,
    image,
    log,
    /** Starts a second one over the same folder. */
    start,
    /** As foreign programs want it. */
    uri: (name: string) => `nbd+unix:///${name}?socket=${socket}`,
    nbd: async (name: string, options: ConnectOptions = {}) =>
      stack.use(await NbdClient.connect(`nbd+unix:///${name}?socket=${socket}`, options)),
    execute: <Result = unknown>(command: string, args: object = {}) => qmp.execute(command, args) as Promise<Result>,
  }
}

export type TestAppliance = Awaited<ReturnType<typeof startAppliance>>
