// A pull session read by other people's programs from a running appliance: data, holes and bitmaps at awkward offsets.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { startAppliance, type TestAppliance } from '../helpers/appliance.ts'
import { diskContent, randomBytes } from '../helpers/random-bytes.ts'
import { scratchFolder } from '../helpers/control.ts'
import { missing, PYTHON, PYTHON_LIBNBD, run } from '../helpers/tools.ts'

const GRANULE = 65536
/** Neither a multiple of a granule nor of a sector. */
const SIZE = 40 * GRANULE + 12_345

const withAppliance = (
  name: string,
  tools: string[],
  test: (t: Test, appliance: TestAppliance, content: Buffer, folder: string) => Promise<void>,
) =>
  void t.test(name, { skip: missing(...tools) }, async t => {
    await using stack = new AsyncDisposableStack()
    const content = diskContent(SIZE, 11)
    await test(t, await startAppliance(stack, { disks: { root: content } }), content, await scratchFolder(stack))
  })

/** Writes at unaligned edges and into the last, partial granule. */
async function scatter({ uri }: TestAppliance) {
  const writes = [
    `write -P 1 ${GRANULE - 1} 2`,
    `write -P 2 ${10 * GRANULE} 1`,
    `write -z ${20 * GRANULE + 100} 70000`,
    `discard ${30 * GRANULE} 512`,
    `write -P 3 ${SIZE - 1} 1`,
  ]
  await run('qemu-io', ['-f', 'raw', ...writes.flatMap(write => ['-c', write]), uri('db/root')])
}
const DIRTY = [0, 1, 10, 20, 21, 30, 40]

interface Mapped {
  readonly offset: number
  readonly length: number
  readonly type: number
}

const granulesOf = (ranges: readonly { readonly offset: number; readonly length: number }[]) => {
  const granules = new Set<number>()
  for (const { offset, length } of ranges)
    for (let at = offset; at < offset + length; at += GRANULE) granules.add(Math.floor(at / GRANULE))
  return [...granules]
}

withAppliance(
  'nbdinfo and qemu-img see in the bitmap what was written, and in the view what was there',
  ['nbdinfo', 'qemu-img', 'qemu-io', 'nbdcopy'],
  async (t, appliance, content, folder) => {
    const { execute, uri, nbd } = appliance
    await execute('checkpoint-create', { machine: 'db', name: 'one' })
    await scatter(appliance)
    const instant = await (await nbd('db/root')).read(0, SIZE)
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one' })
    await run('qemu-io', ['-f', 'raw', '-c', `write -P 9 0 ${5 * GRANULE}`, uri('db/root')])

    const listed = JSON.parse(await run('nbdinfo', ['--json', uri('s/root')])) as {
      exports: { contexts: string[]; is_read_only: boolean; 'export-size': number }[]
    }
    t.match(listed.exports[0], {
      contexts: ['base:allocation', 'qemu:dirty-bitmap:backup-root'],
      is_read_only: true,
      'export-size': SIZE,
    })

    const map = JSON.parse(await run('nbdinfo', ['--json', '--map=qemu:dirty-bitmap:backup-root', uri('s/root')])) as Mapped[]
    t.same(granulesOf(map.filter(({ type }) => type === 1)), DIRTY)
    t.equal(map.at(-1)!.offset + map.at(-1)!.length, SIZE, 'to the last byte')

    const image = `driver=nbd,server.type=unix,server.path=${uri('').split('socket=')[1]},export=s/root,x-dirty-bitmap=qemu:dirty-bitmap:backup-root`
    const qemu = JSON.parse(await run('qemu-img', ['map', '--output=json', '--image-opts', image])) as {
      start: number
      length: number
      data: boolean
    }[]
    t.same(
      granulesOf(qemu.filter(({ data }) => !data).map(({ start, length }) => ({ offset: start, length }))),
      DIRTY,
      'QEMU shows dirty as no data',
    )

    const allocation = JSON.parse(await run('nbdinfo', ['--json', '--map', uri('s/root')])) as Mapped[]
    for (const { offset, length, type } of allocation) {
      if (type & 2)
        t.ok(
          instant.subarray(offset, offset + length).every(byte => byte === 0),
          `zero at ${offset}`,
        )
    }
    const copies = ['nbdcopy', 'qemu-img'].map(by => join(folder, by))
    await run('nbdcopy', [uri('s/root'), copies[0]!])
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri('s/root'), copies[1]!])
    for (const copy of copies) t.ok(readFileSync(copy).subarray(0, SIZE).equals(instant), copy)
    t.notOk(instant.equals(content))
  },
)

withAppliance(
  'several clients read a view at once while another is killed in the middle of a write',
  ['nbdcopy', 'qemu-io', PYTHON, PYTHON_LIBNBD],
  async (t, appliance, content, folder) => {
    const { execute, uri, nbd } = appliance
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's' })
    const program = `
import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1])
print('writing', flush=True)
while True:
    for offset in range(0, 2000000, 262144): h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'K' * 262144)), offset)
    while h.aio_in_flight() > 4: h.poll(-1)
`
    const killed = spawn(PYTHON, ['-c', program, uri('db/root')], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(killed.stdout, 'data')
    const copies = [0, 1, 2].map(index => join(folder, `copy${index}`))
    const copying = copies.map(copy => run('nbdcopy', ['--connections=2', uri('s/root'), copy]))
    setTimeout(() => killed.kill('SIGKILL'), 30)
    await Promise.all([...copying, once(killed, 'exit')])
    for (const copy of copies) t.ok(readFileSync(copy).equals(content), copy)
    const guest = await nbd('db/root')
    await guest.write(0, randomBytes(1000, 1))
    t.ok((await guest.read(0, 1000)).equals(randomBytes(1000, 1)), 'others are served on')
    await execute('backup-finish', { name: 's' })
  },
)
