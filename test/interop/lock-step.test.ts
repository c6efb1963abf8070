// One instant over several disks: a client writes the same counter to both, in order, and no frozen view ever shows them further apart
// than the one write that was in flight.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import t from 'tap'
import { startAppliance } from '../helpers/appliance.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { missing, PYTHON, PYTHON_LIBNBD } from '../helpers/tools.ts'

const CHECKPOINTS = 200
const SIZE = 4 << 20

/** Writes counter after counter to both disks, to the first one first, and noise beside them; says when it has begun. */
const WRITER = `
import nbd, os, sys
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1]); b.connect_uri(sys.argv[2])
noise = os.urandom(65536)
counter = 0
while True:
    counter += 1
    record = counter.to_bytes(8, 'big')
    a.pwrite(record, 1000000)
    b.pwrite(record, 3000001)
    if counter % 16 == 0:
        offset = counter * 7919 % (${SIZE} - 65536)
        if not 900000 < offset < 3000010: a.pwrite(noise, offset)
    if counter == 100:
        print('writing', flush=True)
`

t.test(
  `in ${CHECKPOINTS} checkpoints under load the counters never differ by more than the write in flight`,
  { skip: missing(PYTHON, PYTHON_LIBNBD) },
  async t => {
    await using stack = new AsyncDisposableStack()
    // In memory: the client writes on, as fast as it may, as long as a checkpoint waits for a disk.
    const folder = await scratchFolder(stack)
    const { execute, nbd, uri } = await startAppliance(stack, { folder, disks: { a: Buffer.alloc(SIZE), b: Buffer.alloc(SIZE) } })
    const writer = spawn(PYTHON, ['-c', WRITER, uri('db/a'), uri('db/b')], { stdio: ['ignore', 'pipe', 'inherit'] })
    const exited = once(writer, 'exit')
    stack.defer(async () => {
      writer.kill('SIGKILL')
      await exited
    })
    await once(createInterface(writer.stdout), 'line')

    const counters: [bigint, bigint][] = []
    for (let index = 0; index < CHECKPOINTS; index++) {
      const name = `c${index}`
      const since = index > 0 ? { since: `c${index - 1}` } : {}
      await execute('backup-begin', { machine: 'db', mode: 'pull', name, checkpoint: name, ...since })
      await using a = await nbd(`${name}/a`)
      await using b = await nbd(`${name}/b`)
      counters.push([(await a.read(1_000_000, 8)).readBigUInt64BE(), (await b.read(3_000_001, 8)).readBigUInt64BE()])
      await execute('backup-finish', { name })
      if (index >= 5) await execute('checkpoint-delete', { machine: 'db', name: `c${index - 5}` })
    }
    const apart = counters.filter(([a, b]) => a !== b && a !== b + 1n)
    t.same(apart, [], 'a is written first')
    t.ok(
      counters.every(([a], index) => index === 0 || a >= counters[index - 1]![0]),
      'and none goes back',
    )
    t.ok(counters.at(-1)![0] - counters[0]![0] > CHECKPOINTS, 'the client wrote on all the while')
    t.equal(writer.exitCode, null)
  },
)
