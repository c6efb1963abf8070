// A host on which Stillpoint is installed as the Debian package does it, below a folder; its daemon runs in this process.

import { mkdir, writeFile } from 'node:fs/promises'
import { NbdClient } from 'nbd-client-ts'
import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { loadSettings } from '../../src/settings/load.ts'
import { scratchFolder } from './qemu.ts'
import { follow, Follower, type Step, StillpointFunction, stepsOf } from './guide.ts'

export const PATH = `${process.env['PATH']}:/usr/sbin:/sbin`

/** For somebody who follows a page of docs/. All of it ends with the stack. `replaced`: words of the page, and what stands for them. */
export async function installed(stack: AsyncDisposableStack, page: string, replaced: Record<string, string> = {}) {
  const folder = await scratchFolder(stack)
  for (const name of ['etc/stillpoint/conf.d', 'run/stillpoint', 'srv/disks', 'srv/restore'])
    await mkdir(`${folder}/${name}`, { recursive: true })
  const config = `${folder}/etc/stillpoint/stillpoint.yaml`
  const socket = `${folder}/run/stillpoint/control.sock`
  const nbd = `${folder}/run/stillpoint/nbd.sock`
  await writeFile(config, `state: ${folder}/state\ncontrol: { socket: ${socket} }\nnbd: [ { unix: ${nbd} } ]\n`)
  const said: string[] = []
  const log = createLog('error', { write: line => said.push(line) }, { journal: true })
  let daemon = new AsyncDisposableStack()
  const stop = () => daemon.disposeAsync()
  const start = async () => {
    daemon = new AsyncDisposableStack()
    daemon.use(await Appliance.start(await loadSettings(config), log))
  }
  stack.defer(stop)
  await start()
  const stillpoint = stack.use(new StillpointFunction({ socket, config }))
  const follower = stack.use(new Follower(folder, { env: { PATH }, prelude: await stillpoint.listen() }))
  const mapped = ['/etc/stillpoint', '/run/stillpoint', '/srv', '/media/usb']
  return {
    folder,
    /** What the daemon has logged as errors. */
    said,
    start,
    stop,
    run: (commands: string) => follower.run(commands),
    nbd: (name: string) => NbdClient.connect(`nbd+unix:///${name}?socket=${nbd}`),
    /** A file in conf.d. */
    drop: (name: string, text: string) => writeFile(`${folder}/etc/stillpoint/conf.d/${name}.yaml`, text),
    follow: async (instead: Record<string, () => Promise<void>> = {}, steps?: readonly Step[]) =>
      follow(steps ?? (await stepsOf(page)), follower, folder, { mapped, instead, replaced }),
  }
}
